"""Errors that a user can cause and mend. The command line prints the message and exits with `exit_code`.

The message is one sentence on one line; where it is about rows, these follow, one a line.
"""


class UserError(Exception):
    """Something in the recipe, the data or the command is wrong; the message names it and says what to do."""

    exit_code = 2


class RecipeError(UserError):
    """The recipe file does not parse or does not validate."""


class DataError(UserError):
    """A data source is missing, empty or has a row that cannot be used."""


class RewardError(UserError):
    """A reward cannot be loaded, or broke the contract of reward functions."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or holds what cannot be read safely or rightly."""


class ExtrapolationError(UserError):
    """Checkpoints that do not fit together, a setting of an operation on them, or an output that cannot be written."""


class EvaluationError(UserError):
    """Samples that cannot be read, added to or compared, or that are too few for what is asked of them."""


class RunAborted(UserError):
    """The run stopped itself because going on would waste compute; what was saved stays."""

    exit_code = 1
