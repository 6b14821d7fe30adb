"""Saving and restoring the training state. The only module that knows Orbax."""

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxlm.config import NoCheckpointError, UserError
from jaxlm.types import Tree

STATE, METRICS = "state", "scores"  # Orbax keeps the name "metrics" to itself
PARAMS = "params"  # the parameters' name in a state
RANKED_BY = "eval/loss"  # lower is better
SHOWN = 3  # differences that an error lists
SHOWN_CHARACTERS = 240  # of an Orbax error: its end, which has the reason


class Checkpoints:
    """The checkpoints in one directory: the newest `keep` stay, and the best by `eval/loss`.

    Makes the directory. One process (or one group of jax processes) saves at a time; any number may read.
    """

    def __init__(self, directory: Path, keep: int):
        self.directory = Path(directory).absolute()
        self._keep = keep
        self._abandoned: set[int] = set()  # steps after the restored one
        self._saved_before = False
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(
                self.directory,
                item_handlers={
                    STATE: ocp.StandardCheckpointHandler(),
                    METRICS: ocp.JsonCheckpointHandler(),
                },
                options=ocp.CheckpointManagerOptions(preservation_policy=self),
            )
        except OSError as error:
            raise UserError(
                f"{self.directory}: can't keep checkpoints here: {error.strerror or error}"
            ) from error
        self._losses = {step: self._read_loss(step) for step in self.steps()}

    def save(self, step: int, state: Tree, metrics: dict[str, float] | None = None) -> None:
        """Starts to save `state` (a pytree of jax arrays) as `step`; its buffers may be donated as soon as this returns.

        Does nothing if the step is there already. After a `restore` the steps that came after the restored one belong to a
        history that was left: the first save removes them. Raises UserError if this save or the one before it fails.
        """
        self.wait()
        self._make_room()
        if step in self.steps():
            return
        if self.steps() and step < self.steps()[-1]:
            raise UserError(
                f"{self.directory}: step {step} can't follow step {self.steps()[-1]}, which was not restored"
            )
        scores = {tag: float(value) for tag, value in (metrics or {}).items()}
        self._losses[step] = scores.get(RANKED_BY, math.inf)
        items = {STATE: ocp.args.StandardSave(state), METRICS: ocp.args.JsonSave(scores)}
        try:
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        except OSError as error:
            raise self._failed("can't save a checkpoint", error, UserError) from error

    def wait(self) -> None:
        """Waits until the last save is on disk. Raises UserError if it failed."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # from Orbax's threads: of any type
            raise self._failed("can't save a checkpoint", error, UserError) from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, _type: Any, error: BaseException | None, _traceback: Any) -> None:
        # After an error the other processes of the run may never come to finish a save together.
        if error is None or jax.process_count() == 1:
            self.close()

    def close(self) -> None:
        """Waits as `wait` does and ends the threads."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def steps(self) -> list[int]:
        """Steps with a checkpoint, increasing."""
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """The step with the lowest eval/loss; None if no checkpoint has one."""
        return self._best(self.steps())

    def best_loss(self) -> float:
        """The lowest eval/loss of a checkpoint; infinite if none has one."""
        best = self.best()
        return math.inf if best is None else self._losses[best]

    def restore(self, step: int, abstract_state: Tree) -> Tree:
        """The state of `step`, bit for bit, with the structure and shardings of `abstract_state` (ShapeDtypeStructs).

        Raises UserError where a parameter's presence, shape or dtype differs, NoCheckpointError if the step can't be read.
        """
        self._check_step(step)
        self._refuse_another(step, leaves(abstract_state))
        try:
            items = ocp.args.Composite(**{STATE: ocp.args.StandardRestore(abstract_state)})
            state = self._manager.restore(step, args=items)[STATE]
        except (jax.errors.JaxRuntimeError, MemoryError):
            raise  # the machine's limits, not the checkpoint's
        except Exception as error:
            raise self._failed("can't be read", error, NoCheckpointError, step) from error
        self._abandoned = {later for later in self.steps() if later > step}
        return state

    def save_params(self, params: Tree) -> None:
        """Saves weights without an optimizer's state as step 0: what a run begins from. Errors as of `save`."""
        self.save(0, {PARAMS: params})

    def restore_params(self, step: int, abstract_params: Tree) -> Tree:
        """The parameters of `step` alone, whatever was saved with them. Errors as of `restore`."""
        self._check_step(step)
        wanted = {PARAMS: abstract_params}
        self._refuse_another(step, leaves(wanted), only=f"{PARAMS}/")
        arguments = ocp.args.PyTreeRestore(
            item=wanted,
            restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
            partial_restore=True,
        )
        try:
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
                return reader.restore(self.directory / str(step) / STATE, args=arguments)[PARAMS]
        except (jax.errors.JaxRuntimeError, MemoryError):
            raise
        except Exception as error:
            raise self._failed("can't be read", error, NoCheckpointError, step) from error

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Orbax asks which of the checkpoints, oldest first, stay."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        stay = {*steps[-self._keep :], self._best(steps)}
        return [step in stay for step in steps]

    def _best(self, steps: list[int]) -> int | None:
        ranked = [step for step in steps if math.isfinite(self._losses.get(step, math.inf))]
        return min(ranked, key=lambda step: (self._losses[step], -step), default=None)

    def _read_loss(self, step: int) -> float:
        """eval/loss of a checkpoint on disk; infinite where it has none or its file is damaged, which must not hide the others."""
        try:
            text = (self.directory / str(step) / METRICS / "metadata").read_text()
            return float(json.loads(text)[RANKED_BY])
        except (OSError, ValueError, KeyError, TypeError):
            return math.inf

    def _saved_tree(self, step: int) -> Tree:
        """The saved state as a tree of shapes and dtypes."""
        try:
            return self._manager.item_metadata(step)[STATE].tree
        except Exception as error:
            raise self._failed("can't be read", error, NoCheckpointError, step) from error

    def _check_step(self, step: int) -> None:
        if step not in self.steps():
            known = ", ".join(map(str, self.steps())) or "none"
            raise NoCheckpointError(
                f"{self.directory}: no checkpoint of step {step} (there are: {known})"
            )

    def _refuse_another(self, step: int, wanted: dict[str, str], only: str = "") -> None:
        """UserError if the saved arrays, of those whose paths begin with `only`, have other names, shapes or dtypes: Orbax would
        cast them in silence."""
        found = {
            path: leaf
            for path, leaf in leaves(self._saved_tree(step)).items()
            if path.startswith(only)
        }
        differing = [
            path for path in sorted({*found, *wanted}) if found.get(path) != wanted.get(path)
        ]
        if differing:
            shown = "; ".join(
                f"{path}: {found.get(path, 'absent')} -> {wanted.get(path, 'absent')}"
                for path in differing[:SHOWN]
            )
            more = f" and {len(differing) - SHOWN} more" if len(differing) > SHOWN else ""
            raise UserError(f"{self.directory / str(step)} holds another state: {shown}{more}")

    def _make_room(self) -> None:
        """Before the first save: removes what killed saves and an abandoned history left. Not earlier, since readers come here too."""
        if not self._saved_before and jax.process_index() == 0:
            for partial in self.directory.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(partial, ignore_errors=True)
        self._saved_before = True
        try:
            for step in sorted(self._abandoned):
                self._manager.delete(step)
        except OSError as error:
            raise self._failed("can't remove an old checkpoint", error, UserError) from error
        self._abandoned.clear()

    def _failed(
        self, what: str, error: Exception, kind: type[UserError], step: int | None = None
    ) -> UserError:
        where = self.directory if step is None else self.directory / str(step)
        return kind(f"{where}: {what}: {reason(error)}")


def reason(error: BaseException) -> str:
    """The root of an Orbax error in one line, without the long specification that TensorStore adds in brackets."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    line = (str(error).splitlines() or [""])[0].partition(" [")[0]
    return f"{type(error).__name__}: {line if len(line) <= SHOWN_CHARACTERS else '...' + line[-SHOWN_CHARACTERS:]}"


def leaves(tree: Tree) -> dict[str, str]:
    """'params/blocks/query' -> 'float32 [12, 768]' of every array, whatever containers the tree is made of."""
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype} {list(leaf.shape)}"
        for path, leaf in paths
    }
