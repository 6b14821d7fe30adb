"""The model card: README.md and loss.svg of a run directory or of an exported Hugging Face directory.

While it trains, a run keeps in training.json what only it knows (`record`). `gather` reads that, config.json and metrics.jsonl, and
`write` makes the card of it. What authors write into a card stays when it is written again (readme.py says how).
"""

from jaxlm.card.facts import Facts, gather
from jaxlm.card.readme import write
from jaxlm.card.record import Start, imported, record, start

__all__ = ["Facts", "Start", "gather", "imported", "record", "start", "write"]
