"""The errors a user can cause. Each message is one line: what is at fault, and what would be accepted.

The command line prints the message and exits with `exit_code`; a traceback is kept for our own mistakes.
"""


class GossamerError(Exception):
    """Base of every error that the user's input can cause (exit code 2)."""

    exit_code = 2


class ModelError(GossamerError):
    """A checkpoint that is missing, truncated, of an unknown kind, or without what the job needs."""


class DataError(GossamerError):
    """A data set, image, tokenizer or text that cannot be read or holds too little."""


class PlanError(GossamerError):
    """A plan that is malformed, names an unknown technique or path, or belongs to another model."""


class BudgetError(GossamerError):
    """A budget that is absurd, or that no allowed choice can meet."""


class DeviceError(GossamerError):
    """A device description that is missing or malformed."""


class SettingError(GossamerError, ValueError):
    """A setting outside what is possible."""


class OutputError(GossamerError):
    """A place that cannot be written: no permission, no space, or something else already there."""


class RequirementError(GossamerError):
    """A stated requirement was measured and not met: quality floor or export parity (exit code 1)."""

    exit_code = 1
