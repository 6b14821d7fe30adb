"""Errors that the user can mend. Each ends a command with one line and its exit code."""


class UserError(Exception):
    """A mistake in a config, in data or in arguments.

    Commands print it as one line and exit with `exit_code`.
    """

    exit_code = 2


class ConfigError(UserError):
    """A config that can't be used.

    `path` is the full path of the key ("model.layers"); `reason` says what is wrong with it.
    """

    def __init__(self, path: str, reason: str):
        self.path, self.reason = path, reason
        super().__init__(f"{path}: {reason}" if path else reason)

    def __reduce__(self) -> tuple:
        """Let another process raise it."""
        return type(self), (self.path, self.reason)


class NoCheckpointError(UserError):
    """No checkpoint in the run directory can be restored."""

    exit_code = 3


class DivergedError(UserError):
    """A loss, or a score of a model, is not a finite number."""

    exit_code = 4


class LostError(UserError):
    """Another process of the run is gone, or can't be reached."""

    exit_code = 5
