"""A small encoder."""

from dataclasses import replace

from quickstart import config as decoder

from jaxlm.config import Evaluation, Objective, Optimizer, Training

config = replace(
    decoder,
    model=replace(decoder.model, family="encoder"),
    objective=Objective(kind="masked"),
    optimizer=Optimizer(learning_rate=4e-3, schedule="linear", warmup_steps=50, final_learning_rate_ratio=0.0),
    training=Training(steps=900, batch_size=8),
    evaluation=Evaluation(every_steps=450, samples=2, draws=3),
)
