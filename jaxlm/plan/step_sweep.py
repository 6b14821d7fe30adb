"""The variants of a config that a sweep compiles: ZeRO stage, tensor size, microbatches, remat.

Imports no jax.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, get_args

from jaxlm import run_checks
from jaxlm.config import Config, ConfigError, ParallelConfig, UserError
from jaxlm.config.fields import suggestion
from jaxlm.data.schedule import BatchSchedule
from jaxlm.hardware import Cluster

SWEPT = {
    "zero": "ZeRO stages",
    "tensor": "sizes of parallel.tensor",
    "microbatches": "numbers of microbatches",
    "remat": "policies of parallel.remat",
}
REMAT = get_args(ParallelConfig.__annotations__["remat"])
STAGES = get_args(ParallelConfig.__annotations__["zero"])
MOST_NUMBER = 1_000_000
MOST_VARIANTS = 1_000


class SweepValues(NamedTuple):
    """The values of a sweep; those of an empty one are chosen by config and cluster."""

    zero: tuple[int, ...] = ()
    tensor: tuple[int, ...] = ()
    microbatches: tuple[int, ...] = ()
    remat: tuple[str, ...] = ()


def parse_values(name: str, text: str) -> tuple:
    """Return the values of `--NAME`, "0,3". Raises UserError for what the field can't have."""
    values = []
    for word in text.split(","):
        if name == "remat":
            if word not in REMAT:
                hint = suggestion(word, REMAT) or f" (there are: {', '.join(REMAT)})"
                raise UserError(f"--remat: there is no policy {word!r}{hint}")
            values.append(word)
            continue
        number = int(word) if word.isascii() and word.isdecimal() and len(word) < 8 else -1
        if name == "zero" and number not in STAGES:
            raise UserError(f"--zero: a stage is 0, 1, 2 or 3, got {word!r}")
        if name != "zero" and not 1 <= number <= MOST_NUMBER:
            raise UserError(f"--{name}: must be whole numbers above 0, as in 1,2, got {word!r}")
        values.append(number)
    return tuple(dict.fromkeys(values))


def list_variants(config: Config, cluster: Cluster, values: SweepValues) -> list[Config]:
    """Return the variants of a config that fit a cluster.

    Raises ConfigError, the first refusal, if none fits.
    """
    values = choose_values(config, cluster, values)
    variants, refusals = [], []
    for zero, tensor, remat in itertools.product(values.zero, values.tensor, values.remat):
        counts = values.microbatches or choose_microbatches(config, cluster, tensor)
        for microbatches in counts:
            try:
                parallel = replace(config.parallel, zero=zero, tensor=tensor, remat=remat)
                training = replace(config.training, microbatches=microbatches)
                variant = replace(config, parallel=parallel, training=training)
                run_checks.check_sample(variant)
                run_checks.check_mesh(variant, cluster.gpus, first_step=0)
                variants.append(variant)
            except ConfigError as error:
                refusals.append(error)

    if not variants:
        raise refusals[0]
    if len(variants) > MOST_VARIANTS:
        raise UserError(f"--sweep: {len(variants):,} variants are more than {MOST_VARIANTS:,}")
    return variants


def choose_values(config: Config, cluster: Cluster, values: SweepValues) -> SweepValues:
    """Return the values with those of a config and a cluster where none are given.

    On one GPU all stages are the same program. Microbatches depend on the size of the mesh.
    """
    own = config.parallel
    stages = tuple(STAGES) if cluster.gpus > 1 else (own.zero,)
    tensor = [size for size in (1, 2) if size <= cluster.gpus_per_node]
    return SweepValues(
        zero=values.zero or stages,
        tensor=values.tensor or distinct((*tensor, own.tensor if own.tensor > 0 else 1)),
        microbatches=values.microbatches,
        remat=values.remat or distinct(("none", "full", own.remat)),
    )


def choose_microbatches(config: Config, cluster: Cluster, tensor: int) -> tuple[int, ...]:
    """Return 1, the config's own number, and the one that leaves a GPU a row at a time."""
    sizes = BatchSchedule(config.training.batch_size, config.training.batch_schedule).sizes(0)
    most = max(1, min(sizes) * tensor // cluster.gpus)
    return distinct((1, min(config.training.microbatches, most), most))


def distinct(values: Sequence) -> tuple:
    """Return each value once, in order."""
    return tuple(dict.fromkeys(values))
