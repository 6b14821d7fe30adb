"""A small encoder-decoder on the quickstart's text: text infilling.

    python -m jaxlm.train --config configs/quickstart_encoder_decoder.py

5.8M parameters, 2.9M tokens of source and target, from the modules of Python's own library. On two
CPU cores with bfloat16 instructions (Xeon, November 2026, Python 3.11, jax 0.10.2) training takes
200 to 260 s and ends at 0.62 nats per token of the restored text; the frequencies of the tokens
alone give 6.25 nats.

Samples are short, positions are learned and the initial values are T5's, because the decoder then
soon finds its place in the source. BART hides 30% in spans, T5 15%; span corruption
(objective.kind=span) has fewer targets per token, and the decoder takes far longer than five
minutes before it reads its encoder at all.
"""

from dataclasses import replace

from quickstart import config as decoder

from jaxlm.config import (
    DataConfig,
    EvaluationConfig,
    ObjectiveConfig,
    TokenizerConfig,
    TrainingConfig,
)

config = replace(
    decoder,
    model=replace(
        decoder.model,
        family="encoder_decoder",
        layers=2,
        context_length=32,
        norm="layernorm",
        norm_bias=False,
        positions="learned",
        tied_head=False,
        initializer="t5",
    ),
    objective=ObjectiveConfig(kind="infilling", noise_share=0.15, shuffle_sentences=False),
    tokenizer=TokenizerConfig(begin_of_text="<s>"),
    data=DataConfig(sequence_length=32),
    optimizer=replace(decoder.optimizer, learning_rate=2e-3),
    training=TrainingConfig(steps=1400, batch_size=32),
    evaluation=EvaluationConfig(every_steps=700, samples=4),
    checkpoint=replace(decoder.checkpoint, every_steps=700),
    logging=replace(decoder.logging, every_steps=50),
)
