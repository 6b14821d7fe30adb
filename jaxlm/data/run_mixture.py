"""Say before training what a run reads of each source of a store."""

from jaxlm import objectives
from jaxlm.config import Config, ConfigError
from jaxlm.data.mixture_plan import (
    batch_schedule,
    describe_mixture,
    format_mixture,
    plan_mixture,
)
from jaxlm.data.store import Store
from jaxlm.data.stream import open_stream, source_sizes


def format_run_mixture(config: Config, store: Store) -> str:
    """Return the table of what a run of this config reads of each source; "" for a single one.

    It is the table that training prints. A run that can't be trained so does not spoil its store:
    in place of the table stands a warning with the key.
    """
    if len(config.data.sources) == 1:
        return ""
    steps, batches = config.training.steps, batch_schedule(config)
    try:
        length, vocabulary = config.data.sequence_length, store.tokenizer.vocabulary
        objective = objectives.build(config.objective, length, vocabulary, config.model)
        stream = open_stream(store, config.data, objective, batches, config.seed)
        sizes = source_sizes(stream, store, config.data)
        mixture = plan_mixture(config, sizes)
        table = format_mixture(describe_mixture(sizes, mixture, batches, steps))
    except ConfigError as error:
        return f"warning: this config can't train: {error}"
    samples = f"{batches.first_sample(steps):,} samples of {length:,} tokens"
    return f"{steps:,} steps (training.steps) read {samples}:\n{table}"
