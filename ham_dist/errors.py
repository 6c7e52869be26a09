"""Errors that the user can fix.

The command line catches `HamError`, prints its message and exits with code 2. Any other exception is a bug of
ham_dist:
it keeps its traceback and exits with code 1. A message has four parts: where, what it got, what it expected,
and how to fix it.
"""


class HamError(ValueError):
    """Base class of all errors that the user can fix."""


class ConfigError(HamError):
    """Raised for settings, options or arguments that cannot be used; lists every mistake found."""


class DataError(HamError):
    """Raised for raw or prepared data that is missing, damaged, or different from its manifest."""


class TargetError(HamError):
    """Raised for a search target that the tables cannot meet."""


class ShardingError(HamError):
    """Raised for tables that cannot be placed on, or read from, these ranks."""


class SlicingError(HamError):
    """Raised for a model that cannot be sliced, or whose logits change when it is sliced."""


class CheckpointError(HamError):
    """Raised for a checkpoint or run folder that is missing, damaged, or belongs to another run."""


class OtherRunError(CheckpointError):
    """Raised for a checkpoint of another run, or of the same run with other settings."""


class BundleError(HamError):
    """Raised for a bundle that is incomplete, damaged, of a newer format, or unlike the live model."""


class ReportError(HamError):
    """Raised for a run folder without the files that a report needs, or a report that cannot be written."""


class BackendError(HamError):
    """Raised if torch, torchrec and fbgemm-gpu do not fit together, or a device lacks a kernel."""


class DivergedError(HamError):
    """Raised if the loss is not a finite number."""


class LostRankError(HamError):
    """Raised if another rank has ended, or does not respond."""


class Preempted(Exception):
    """Raised after a checkpoint was saved because of SIGTERM.

    It is not an error of the user, so it is not a HamError.
    """
