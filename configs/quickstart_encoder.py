"""The quickstart's text for a small encoder: masked LM on the modules of Python's own library.

    python -m jaxlm.train --config configs/quickstart_encoder.py

FIGURES
"""

from dataclasses import replace

from quickstart import config as decoder

from jaxlm.config import Data, Evaluation, Objective, Training

config = replace(
    decoder,
    model=replace(decoder.model, family="encoder", context_length=128),
    objective=Objective(kind="masked"),
    data=Data(sequence_length=128),
    training=Training(steps=1100, batch_size=16),
    evaluation=Evaluation(every_steps=550, draws=3),
    checkpoint=replace(decoder.checkpoint, every_steps=550),
)
