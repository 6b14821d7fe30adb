"""Count the examples of each label, by split, before anything is tokenised."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from jaxlm.config import ConfigError, DataConfig
from jaxlm.data.building.encoding import read_kept
from jaxlm.data.building.judging import Judgement
from jaxlm.data.building.units import Unit
from jaxlm.data.corpus import numbered_sources
from jaxlm.data.documents import record_shape
from jaxlm.data.examples import ExampleSpec
from jaxlm.data.split import SPLITS, TRAIN

KEY = "model.classifier.labels"


def count_labels(
    folder: Path,
    data: DataConfig,
    units: Sequence[Unit],
    judgement: Judgement,
    examples: ExampleSpec | None,
    report: Callable[[str], None],
) -> dict[str, dict[str, int]] | None:
    """Return how often each label stands in a split; None where there are no names of labels.

    Raises ConfigError where a label has no training example; with `data.on_error=skip` it is told.
    """
    if examples is None or not examples.labels or examples.problem == "regression":
        return None
    counts = {split: Counter[int]() for split in SPLITS}
    for unit in units:
        source = numbered_sources(data)[unit.source].config
        cut = judgement.cuts.get(unit.source)
        for document in read_kept(folder, unit, record_shape(source), cut):
            labels = json.loads(document.facts or "{}").get("labels", [])
            counts[document.split].update(label for label in labels if label >= 0)

    missing = [name for number, name in enumerate(examples.labels) if not counts[TRAIN][number]]
    if missing:
        names = ", ".join(map(repr, missing[:5])) + (", ..." if len(missing) > 5 else "")
        reason = f"no example of the training split has {names}"
        if data.on_error == "fail":
            raise ConfigError(KEY, reason)
        report(f"warning: {KEY}: {reason}")
    return {
        split: {name: count[number] for number, name in enumerate(examples.labels)}
        for split, count in counts.items()
    }
