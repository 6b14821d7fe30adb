"""The model card: README.md and loss.svg of a run directory or of an exported directory.

While it trains, a run keeps in training.json what only the training process knows
(`record_progress`). `gather_facts` reads that, config.json and metrics.jsonl, and `write_card`
makes the card of it. What authors write into a card stays when it is written again; readme.py
says how.
"""

from jaxlm.card.facts import Facts, gather_facts
from jaxlm.card.readme import write_card
from jaxlm.card.training_record import (
    TrainingStart,
    new_start,
    record_import,
    record_progress,
)
from jaxlm.markdown import code

__all__ = [
    "Facts",
    "TrainingStart",
    "code",
    "gather_facts",
    "new_start",
    "record_import",
    "record_progress",
    "write_card",
]
