"""A small encoder-decoder."""

from dataclasses import replace

from jaxlm.config import Objective, Tokenizer, Training
from quickstart import config as decoder

config = replace(
    decoder,
    model=replace(decoder.model, family="encoder_decoder", layers=2, encoder_layers=4, positions="relative"),
    objective=Objective(kind="span"),
)
