"""Save and restore the training state. The only module that knows Orbax."""

import contextlib
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxlm.checkpoint.descriptions import describe_arrays, root_cause
from jaxlm.config import CheckpointConfig, NoCheckpointError, UserError
from jaxlm.files import write_atomically
from jaxlm.types import Tree

STATE, METRICS = "state", "scores"  # folders of a step; Orbax keeps the name "metrics" to itself
STRUCTURE = "_METADATA"  # file of a state: names, shapes and dtypes of its arrays
TIMES = "_CHECKPOINT_METADATA"  # file of a step: when its save began and ended
PARAMS = "params"  # the parameters' name in a state
LOSS = "eval/loss"  # lower is better; of all other figures higher is
LISTED_DIFFERENCES = 3  # in an error


class Checkpoints:
    """The checkpoints in one directory: the newest `keep` stay, and the best by one figure.

    The figure is the tag `best` of the evaluations: eval/loss, or one of which more is better.
    Makes the directory. One process (or one group of jax processes) saves at a time; any number may
    read.
    """

    def __init__(self, directory: Path, keep: int, best: str = LOSS):
        self.directory = Path(directory).absolute()
        self._keep = keep
        self.ranked_by = best
        self._abandoned: set[int] = set()  # steps after the restored one
        self._unrated: int | None = None  # the newest step, while its evaluation runs
        self._rating: tuple[int, dict[str, float]] | None = None  # that is still to be written
        self._has_saved = False

        handlers = {STATE: ocp.StandardCheckpointHandler(), METRICS: ocp.JsonCheckpointHandler()}
        options = ocp.CheckpointManagerOptions(preservation_policy=self)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(
                self.directory, item_handlers=handlers, options=options
            )
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"{self.directory}: can't keep checkpoints here: {reason}") from error

        # An empty folder, such as an interrupted copy leaves, is no checkpoint.
        all_steps = self._manager.all_steps()
        self._empty = {step for step in all_steps if is_empty(self.directory / str(step))}
        self._costs = {step: self.cost(self._read_scores(step)) for step in self.steps()}

    @classmethod
    def of_run(cls, run: Path, config: CheckpointConfig) -> "Checkpoints":
        """Open those of a run directory."""
        return cls(run / "checkpoints", config.keep, config.best)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, _type: Any, error: BaseException | None, _traceback: Any) -> None:
        if error is None:
            self.close()
        elif jax.process_count() == 1:
            # A save that fails now must not hide the error. Of several processes the others may
            # never come to finish a save together.
            with contextlib.suppress(Exception):
                self.close()

    def close(self) -> None:
        """Wait as `wait` does and end the threads."""
        try:
            self.wait()
        except UserError:
            with contextlib.suppress(Exception):  # Orbax raises the error of the save again
                self._manager.close()
            raise
        self._manager.close()

    # Saving

    def save(
        self,
        step: int,
        state: Tree,
        metrics: dict[str, float] | None = None,
        *,
        evaluated: bool = True,
    ) -> None:
        """Start to save `state`, a pytree of jax arrays, as `step`.

        Its buffers may be donated as soon as this returns. Does nothing if the step is there
        already. After a `restore`, the steps after the restored one belong to a history that was
        abandoned: the first save removes them. Without `evaluated`, the evaluation of the step is
        still to come: `rate` or `discard` has to follow, and until then one checkpoint more is
        kept. Raises UserError if this save or the one before it fails.
        """
        self.wait()
        self._make_room()
        steps = self.steps()
        if step in steps:
            return
        if steps and step < steps[-1]:
            raise UserError(
                f"{self.directory}: step {step} can't follow step {steps[-1]}, "
                "which was not restored"
            )

        scores = {tag: float(value) for tag, value in (metrics or {}).items()}
        self._costs[step] = self.cost(scores)
        self._unrated = None if evaluated else step
        items = {STATE: ocp.args.StandardSave(state), METRICS: ocp.args.JsonSave(scores)}
        try:
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        except (OSError, ValueError) as error:  # ValueError: TensorStore's
            raise self._user_error("can't save a checkpoint", error) from error

    def is_saving(self) -> bool:
        """Return whether the last save is not on the disk yet, as far as this process knows."""
        return self._manager.is_saving_in_progress()

    def rate(self, step: int, metrics: dict[str, float], *, now: bool = True) -> None:
        """Record the evaluation of a step that is saved, and remove what need not be kept for it.

        Waits until the save is on disk, unless the next wait may do it (not `now`). Raises
        UserError as `save` does.
        """
        scores = {tag: float(value) for tag, value in metrics.items()}
        self._costs[step] = self.cost(scores)
        self._rating = step, scores
        if now:
            self.wait()

    def _write_rating(self) -> None:
        """Do what `rate` has left to do. The save is on disk."""
        if self._rating is None:
            return
        (step, scores), self._rating, self._unrated = self._rating, None, None
        try:
            if jax.process_index() == 0:
                write_atomically(self._scores_file(step), json.dumps(scores))
            steps = self.steps()
            with jax.transfer_guard("allow"):  # Orbax waits for the other processes
                for number in set(steps) - self._preserved(steps):
                    self._manager.delete(number)
        except OSError as error:
            raise self._user_error("can't record an evaluation", error) from error

    def discard(self, step: int) -> None:
        """Remove a checkpoint that must not be used, if it is there. Raises UserError as `save`."""
        self.wait()
        self._unrated = None
        try:
            if step in self.steps():
                self._manager.delete(step)
        except OSError as error:
            raise self._user_error("can't remove a checkpoint", error) from error

    def save_params(self, params: Tree) -> None:
        """Save weights without an optimizer state as step 0, from which a run starts.

        Raises the errors of `save`.
        """
        self.save(0, {PARAMS: params})

    def wait(self) -> None:
        """Wait until the last save is on disk, with its rating. Raises UserError if it failed."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # from Orbax's threads: of any type
            raise self._user_error("can't save a checkpoint", error) from error
        self._write_rating()

    def _make_room(self) -> None:
        """Remove what killed saves and an abandoned history left, before the first save.

        Not earlier: processes that only read open the directory, too.
        """
        if not self._has_saved and jax.process_index() == 0:
            for unfinished in self.directory.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(unfinished, ignore_errors=True)
        self._has_saved = True

        try:
            for step in sorted(self._abandoned | self._empty):
                self._manager.delete(step)
        except OSError as error:
            raise self._user_error("can't remove an old checkpoint", error) from error
        self._abandoned.clear()
        self._empty.clear()

    def save_seconds(self) -> float:
        """Return the seconds that the newest finished save took, by its record; 0 if unknown."""
        finished = self.steps()
        for step in reversed(finished):
            try:
                record = json.loads((self.directory / str(step) / TIMES).read_text())
                start, end = record["init_timestamp_nsecs"], record["commit_timestamp_nsecs"]
                return max(0.0, (end - start) / 1e9)
            except (OSError, ValueError, LookupError, TypeError):
                continue  # not on the disk yet, or of another version
        return 0.0

    # Which checkpoints there are, and which of them stay

    def steps(self) -> list[int]:
        """Return the steps with a checkpoint, increasing."""
        return sorted(set(self._manager.all_steps()) - self._empty)

    def latest(self) -> int | None:
        """Return the newest step; None if there is no checkpoint."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """Return the best step; None if no checkpoint has the figure."""
        return self._best_of(self.steps())

    def require_best(self) -> int:
        """Return the best step. Raises NoCheckpointError if no checkpoint has the figure."""
        best = self.best()
        if best is None:
            reason = f"no checkpoint has an {self.ranked_by}"
            raise NoCheckpointError(f"{self.directory}: --best: {reason}")
        return best

    def lowest_cost(self) -> float:
        """Return the cost of the best checkpoint; infinity if there is none."""
        best = self.best()
        return math.inf if best is None else self._costs[best]

    def cost(self, scores: Mapping[str, Any]) -> float:
        """Return what the best checkpoint has least of: the loss, or minus another figure.

        It is infinite where the evaluation has no such figure.
        """
        try:
            value = float(scores[self.ranked_by])
        except (ValueError, KeyError, TypeError):
            return math.inf
        return value if self.ranked_by == LOSS else -value

    def is_rated(self, step: int) -> bool:
        """Return whether the evaluation of a step is recorded, whatever it says."""
        return bool(self._read_scores(step))

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Return which of the checkpoints, oldest first, stay: Orbax's preservation policy."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        preserved = self._preserved(steps)
        return [step in preserved for step in steps]

    def _preserved(self, steps: list[int]) -> set[int | None]:
        """Return which of the `steps`, increasing, stay."""
        # One more while nobody knows what the newest is worth: it may have to be discarded.
        newest = self._keep + (steps[-1:] == [self._unrated])
        return {*steps[-newest:], self._best_of(steps)}

    def _best_of(self, steps: list[int]) -> int | None:
        """Return the step with the lowest finite cost, the newest of equals; or None."""
        ranked = [step for step in steps if math.isfinite(self._costs.get(step, math.inf))]
        return min(ranked, key=lambda step: (self._costs[step], -step), default=None)

    def _read_scores(self, step: int) -> dict[str, Any]:
        """Return the recorded evaluation of a checkpoint; empty where there is none.

        A damaged file counts as none: it must not hide the other checkpoints.
        """
        try:
            scores = json.loads(self._scores_file(step).read_text())
        except (OSError, ValueError):
            return {}
        return scores if isinstance(scores, dict) else {}

    def _scores_file(self, step: int) -> Path:
        return self.directory / str(step) / METRICS / "metadata"

    # Restoring

    def restore(self, step: int, abstract_state: Tree) -> Tree:
        """Return the state of `step`, bit for bit.

        Structure and shardings are those of `abstract_state` (ShapeDtypeStructs). Raises UserError
        where a parameter's presence, shape or dtype differs, NoCheckpointError if the step can't be
        read.
        """
        self._check_step(step)
        self._check_arrays(step, describe_arrays(abstract_state))

        items = {STATE: ocp.args.StandardRestore(abstract_state)}
        try:
            state = self._manager.restore(step, args=ocp.args.Composite(**items))[STATE]
        except (jax.errors.JaxRuntimeError, MemoryError):
            raise  # the machine's limits, not the checkpoint's
        except Exception as error:
            raise self._unreadable(step, error) from error

        self._abandoned = {later for later in self.steps() if later > step}
        return state

    def restore_params(self, step: int, abstract_params: Tree) -> Tree:
        """Return the parameters of `step` alone. Raises the errors of `restore`."""
        return self.restore_parts(step, {(PARAMS,): abstract_params})[PARAMS]

    def restore_parts(self, step: int, expected: dict[tuple[str, ...], Tree]) -> Tree:
        """Return the parts of the state of `step` at these paths, as a nested dict.

        Raises the errors of `restore`.
        """
        self._check_step(step)
        tree: Tree = {}
        for path, part in expected.items():
            nested = reduce(lambda inner, name: {name: inner}, reversed(path), part)
            self._check_arrays(step, describe_arrays(nested), prefix="/".join((*path, "")))
            tree |= nested

        restore_args = ocp.checkpoint_utils.construct_restore_args(tree)
        arguments = ocp.args.PyTreeRestore(tree, restore_args=restore_args, partial_restore=True)
        try:
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
                return reader.restore(self.directory / str(step) / STATE, args=arguments)
        except (jax.errors.JaxRuntimeError, MemoryError):
            raise
        except Exception as error:
            raise self._unreadable(step, error) from error

    def check_readable(self, step: int) -> None:
        """Raise NoCheckpointError if the step is not there, or what it holds can't be read."""
        self._check_step(step)
        self._saved_arrays(step)

    def _check_step(self, step: int) -> None:
        """Raise NoCheckpointError, with the steps that there are, if `step` is none of them."""
        if step not in self.steps():
            steps = ", ".join(map(str, self.steps())) or "none"
            raise NoCheckpointError(
                f"{self.directory}: no checkpoint of step {step} (there are: {steps})"
            )

    def _check_arrays(self, step: int, expected: dict[str, str], prefix: str = "") -> None:
        """Raise UserError if the saved arrays have other names, shapes or dtypes than `expected`.

        Orbax would cast them without a word. Only paths that begin with `prefix` are compared.
        """
        saved = self._saved_arrays(step)
        saved = {path: array for path, array in saved.items() if path.startswith(prefix)}
        paths = sorted({*saved, *expected})
        differences = [
            f"{path}: {saved.get(path, 'absent')} -> {expected.get(path, 'absent')}"
            for path in paths
            if saved.get(path) != expected.get(path)
        ]
        if not differences:
            return

        text = "; ".join(differences[:LISTED_DIFFERENCES])
        if len(differences) > LISTED_DIFFERENCES:
            text += f" and {len(differences) - LISTED_DIFFERENCES} more"
        raise UserError(f"{self.directory / str(step)} holds another state: {text}")

    def _saved_arrays(self, step: int) -> dict[str, str]:
        """Return dtype and shape of the saved arrays by path; NoCheckpointError if damaged."""
        folder = self.directory / str(step) / STATE
        for path in (folder, folder / STRUCTURE):
            if not path.exists():
                raise self._unreadable(step, f"{path.relative_to(folder.parent)} is missing")
        try:
            return describe_arrays(self._manager.item_metadata(step)[STATE].tree)
        except Exception as error:
            raise self._unreadable(step, f"{STATE}/{STRUCTURE}: {root_cause(error)}") from error

    # Errors

    def _user_error(self, problem: str, error: Exception) -> UserError:
        return UserError(f"{self.directory}: {problem}: {root_cause(error)}")

    def _unreadable(self, step: int, error: Exception | str) -> NoCheckpointError:
        reason = error if isinstance(error, str) else root_cause(error)
        earlier = [number for number in self.steps() if number < step]
        advice = f"move this folder away to continue from step {earlier[-1]}" if earlier else ""
        path = self.directory / str(step)
        return NoCheckpointError(
            f"{path}: can't be read: {reason}; {advice or 'there is no earlier checkpoint'}"
        )


def is_empty(folder: Path) -> bool:
    """Return whether there is no file below a folder."""
    return not any(path.is_file() for path in folder.rglob("*"))
