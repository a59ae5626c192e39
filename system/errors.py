"""Errors that a user caused and a user can mend.

The text of each is one line: what was expected, what came, what to do. The command line prints it as
`rtb: error: <line>` and exits with status 2; the traceback is shown with `--debug` only. Anything else that
escapes is a bug of ours and keeps its traceback.
"""


class UserError(Exception):
    """Something that the user gave, or the machine it runs on, does not allow what was asked."""


class ConfigError(UserError):
    """A configuration does not describe a run."""


class CheckpointError(UserError):
    """A checkpoint could not be written, or none could be read."""


class RunnerError(UserError):
    """A run cannot go on: its actors, replay or learner are lost, or wait for each other without end."""


class DivergedError(RunnerError):
    """Training has diverged: the stability guard gave up."""
