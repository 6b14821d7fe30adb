"""Continue the training of a decoder on the text of a domain, with replay of what it read before.

    python -m jaxlm.train --config configs/finetune_domain.py base=runs/books \
        'data.sources.0.path=peps/*.rst' 'data.sources.1.path=books/*.txt'

`base` is a run, trained here or made by `python -m jaxlm.convert import`; model and tokenizer are
its own. Of the samples 60% come from the domain and 40% from the text that the base has read
(`data.sources.1.weight=0` and a `mixture_schedule` turn that off; so does --data, which leaves one
source). The rate is warmed up again and decays to a tenth, by a cosine (Ibrahim et al. 2024,
arXiv 2403.08763): a lower peak forgets less and learns less. Documents are held out by the hash of
their text, so that a document that the base held out is held out here too.

Hardware: written for two CPU cores and a base of configs/quickstart.py's size.
"""

from jaxlm import hardware
from jaxlm.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    LoggingConfig,
    OptimizerConfig,
    PrecisionConfig,
    SourceConfig,
    TrainingConfig,
)

config = Config(
    data=DataConfig(
        sources=(
            SourceConfig(name="domain", path="domain", weight=0.6),
            SourceConfig(name="general", path="general", weight=0.4),
        ),
        sequence_length=128,
    ),
    optimizer=OptimizerConfig(
        learning_rate=2e-3, schedule="cosine", warmup_steps=30, final_learning_rate_ratio=0.1
    ),
    precision=PrecisionConfig(compute="bfloat16" if hardware.cpu_has_bfloat16() else "float32"),
    training=TrainingConfig(steps=400, batch_size=16),
    evaluation=EvaluationConfig(every_steps=200, samples=2, sample_tokens=60),
    checkpoint=CheckpointConfig(every_steps=200),
    logging=LoggingConfig(every_steps=20),
)
