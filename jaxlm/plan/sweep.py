"""Ladders of runs for scaling laws: one recipe at several widths and budgets.

An isoFLOP ladder trains each size with each budget; a size ladder trains each size once, on a
number of tokens in proportion to its parameters. All runs share the recipe's data, tokenizer and
token store.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from jaxlm.card.facts import sample_lengths
from jaxlm.config import Config, ConfigError, ModelConfig, UserError, load, to_dict
from jaxlm.directories import CONFIG_FILE
from jaxlm.files import read_utf8, write_atomically
from jaxlm.plan.observations import count_run, read_final_loss, sample_flops
from jaxlm.plan.scaled_config import RULES, describe_changes, scale_model, scale_run

SWEEP_FILE = "sweep.json"
TOKENS_PER_PARAMETER = 20.0  # about the optimum of Hoffmann et al. 2022 (arXiv 2203.15556)
EVALUATION_TOKENS = 2**17
# The sizes of a budget reach from its optimum over this to its optimum times this. Larger models
# see so few tokens that they still learn how often each token comes, which follows another law.
SPAN = 3.0
LEAST_WIDTH, MOST_WIDTH = 16, 2**16  # of those that are chosen
HEAD_FACTOR = 1.5  # by which heads of a chosen width may be wider or narrower than the recipe's
FINENESS = 16  # widths are multiples of a 16th to an 8th of themselves, rounded to a power of two


class LadderRun(NamedTuple):
    """One run of a ladder."""

    name: str
    budget: float  # FLOPs
    config: Config
    parameters: int
    tokens: int
    flops: int  # exact


# Which runs


def plan_isoflop(
    config: Config,
    budgets: Sequence[float],
    *,
    widths: Sequence[int] = (),
    sizes: int = 4,
    tokens_per_parameter: float = TOKENS_PER_PARAMETER,
    evaluation_tokens: int = EVALUATION_TOKENS,
) -> list[LadderRun]:
    """Return an isoFLOP ladder: several widths for every budget (FLOPs), the cheapest runs first.

    They are `widths` or, without these, so many `sizes` around the optimum of each budget for
    `tokens_per_parameter`. Raises UserError where a budget is too small for a width.
    """
    check_distinct("--budgets", budgets)
    if widths:
        check_distinct("--widths", widths)

    runs = []
    for budget in sorted(budgets):
        chosen = widths or choose_widths(config, budget, sizes, tokens_per_parameter)
        for width in sorted(chosen):
            name = f"{short_power(budget)}-w{width}"
            runs.append(plan_run(config, width, budget, name, evaluation_tokens))
    return runs


def plan_sizes(
    config: Config,
    widths: Sequence[int],
    *,
    tokens_per_parameter: float = TOKENS_PER_PARAMETER,
    evaluation_tokens: int = EVALUATION_TOKENS,
) -> list[LadderRun]:
    """Return a size ladder: every width once, with so many tokens per parameter."""
    check_distinct("--widths", widths)
    runs = []
    for width in sorted(widths):
        scaled = replace(config, model=build_model(config, width))
        parameters, _, _ = count_run(scaled)
        samples = tokens_per_parameter * parameters / sample_lengths(scaled).tokens
        budget = samples * sample_flops(scaled)
        runs.append(plan_run(config, width, budget, f"w{width}", evaluation_tokens))
    return runs


def plan_run(
    config: Config, width: int, budget: float, name: str, evaluation_tokens: int
) -> LadderRun:
    """Return one run of a ladder."""
    build_model(config, width)
    run_config = scale_run(config, width, budget, evaluation_tokens=evaluation_tokens)
    parameters, tokens, flops = map(int, count_run(run_config))
    return LadderRun(name, budget, run_config, parameters, tokens, flops)


def build_model(config: Config, width: int) -> ModelConfig:
    """Return the model at a width. Raises UserError naming the width where there is none."""
    try:
        return scale_model(config.model, width)
    except ConfigError as error:
        raise UserError(f"--widths: {width} does not go with the recipe: {error}") from error


def choose_widths(
    config: Config, budget: float, sizes: int, tokens_per_parameter: float
) -> list[int]:
    """Return so many widths whose sizes lie around the optimum of a budget.

    The size is that of FLOPs, a sixth of those per token, which is what a budget is spent on. At
    the optimum C = 6 N D = 6 ratio N^2.
    """
    optimum = math.sqrt(budget / 6 / tokens_per_parameter)
    candidates = {width: size for width in all_widths() if (size := usual_size(config, width))}
    low, high = optimum / SPAN, optimum * SPAN
    if candidates:
        # Below the smallest model all sizes move up, and the largest is still far from it.
        low = min(max(low, min(candidates.values())), max(candidates.values()))
        high = max(high, low * SPAN)
    steps = [low * (high / low) ** (place / max(1, sizes - 1)) for place in range(sizes)]

    chosen: list[int] = []
    for wanted in steps:
        left = [width for width in candidates if width not in chosen]
        if not left:
            raise UserError(f"--sizes: the recipe has only {len(chosen)} widths to choose from")
        nearest = min(left, key=lambda width: abs(math.log(candidates[width] / wanted)))
        chosen.append(nearest)
    return sorted(chosen)


def all_widths() -> list[int]:
    """Return the widths to choose from: multiples of powers of two, 6% to 12% apart or less."""
    widths, width = [], LEAST_WIDTH
    while width <= MOST_WIDTH:
        widths.append(width)
        width += max(8, 2 ** (width.bit_length() - 1) // FINENESS)
    return widths


def usual_size(config: Config, width: int) -> float | None:
    """Return the size of the recipe at a width by its FLOPs; None for a width not to be chosen.

    Its heads are about as wide as the recipe's, and a multiple of 8 channels, as attention kernels
    of GPUs want them.
    """
    try:
        scaled = replace(config, model=scale_model(config.model, width))
    except ConfigError:
        return None

    head, usual = scaled.model.width_per_head, config.model.width_per_head
    is_usual = usual / HEAD_FACTOR <= head <= usual * HEAD_FACTOR or width <= usual
    if head % 8 or not is_usual:
        return None
    return sample_flops(scaled) / sample_lengths(scaled).tokens / 6


def check_distinct(option: str, values: Sequence[float]) -> None:
    """Raise UserError for no values, or equal ones."""
    if not values:
        raise UserError(f"{option}: names none")
    for value in values:
        if list(values).count(value) > 1:
            raise UserError(f"{option}: {value:g} stands twice")


def short_power(flops: float) -> str:
    """Return 1e+16 as '1e16' and 2500000000000000.0 as '2.5e15'."""
    mantissa, _, exponent = f"{flops:.6e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"


# The files


def write_ladder(out: Path, runs: Sequence[LadderRun], recipe: str) -> list[str]:
    """Write config.json of each run and sweep.json; return the names of runs that were there.

    Raises UserError where the folder holds another ladder, or can't be written.
    """
    described = [describe_run(run) for run in runs]
    earlier = read_ladder(out)
    if earlier and earlier != described:
        raise UserError(
            f"{out}: holds another ladder ({describe_difference(earlier, described)}): "
            "choose another --out"
        )

    kept = []
    try:
        for run in runs:
            folder = out / run.name
            if (folder / CONFIG_FILE).exists():
                kept.append(run.name)
                continue
            folder.mkdir(parents=True, exist_ok=True)
            config = replace(run.config, run_directory=str(folder))
            write_atomically(folder / CONFIG_FILE, json.dumps(to_dict(config), indent=2) + "\n")
        document = {"recipe": recipe, "rules": RULES, "runs": described}
        write_atomically(out / SWEEP_FILE, json.dumps(document, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"--out: {error.filename or out}: {error.strerror}") from error
    return kept


def describe_run(run: LadderRun) -> dict[str, Any]:
    """Return a run as sweep.json has it; the digest tells whether a config is the same."""
    values = json.dumps(to_dict(run.config), sort_keys=True)
    return {
        "name": run.name,
        "budget": run.budget,
        "parameters": run.parameters,
        "tokens": run.tokens,
        "flops": run.flops,
        **describe_changes(run.config),
        "digest": hashlib.sha256(values.encode()).hexdigest()[:16],
    }


def read_ladder(out: Path) -> list[dict[str, Any]]:
    """Return the runs of sweep.json; [] where there is no ladder yet."""
    path = out / SWEEP_FILE
    try:
        return json.loads(read_utf8(path))["runs"]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"--out: {path}: {error.strerror}") from error
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path}: is damaged: choose another --out") from error


def describe_difference(earlier: Any, described: Sequence[dict[str, Any]]) -> str:
    """Return in a few words how two ladders differ."""
    names = [[run.get("name") for run in runs] for runs in (earlier, described)]
    if names[0] != names[1]:
        other = [str(name) for name in names[0] if name not in names[1]]
        return f"it has {', '.join(other[:3])}" if other else "it has fewer runs"
    for before, after in zip(earlier, described, strict=True):
        for key, value in after.items():
            if before.get(key) != value and key != "digest":
                return f"{key} of {after['name']} is {before.get(key)}, not {value}"
    return "of a recipe with other values"


def is_finished(folder: Path) -> bool:
    """Return whether the run in a folder has its final loss."""
    return read_final_loss(folder, load(folder / CONFIG_FILE))[0] is not None
