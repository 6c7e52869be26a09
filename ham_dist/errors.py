"""Every mistake that a user can make and we can name.

The command line catches `HamError`, prints its message and exits with 2; any other exception is our own bug, keeps its traceback and exits with 1.
A message says where, what it got, what it wanted, and how to mend it.
"""


class HamError(ValueError):
    """Root of all errors that are the user's to mend."""


class ConfigError(HamError):
    """A run's TOML or a --set that cannot be used; holds every mistake found, not the first."""


class DataError(HamError):
    """Raw or prepared data that is missing, damaged, or not what its manifest says."""


class TargetError(HamError):
    """A search target that the tables cannot meet."""


class ShardingError(HamError):
    """Tables that cannot be placed on, or read from, these ranks."""


class SlicingError(HamError):
    """The narrow model does not give the masked model's logits."""


class CheckpointError(HamError):
    """A checkpoint that is missing, damaged, or of another run."""


class OtherRunError(CheckpointError):
    """A checkpoint of another run, or of the same run under other settings."""


class BundleError(HamError):
    """A bundle that is missing a file, damaged, of a newer format, or not equal to the live model."""


class ReportError(HamError):
    """A run folder that no report can be made of, or a report that cannot be written."""


class BackendError(HamError):
    """torch, torchrec and fbgemm-gpu do not fit together, or a kernel does not exist on this device."""


class DivergedError(HamError):
    """The loss is not a finite number."""


class LostRankError(HamError):
    """Another rank ended, or does not answer."""


class Preempted(Exception):
    """Whoever runs the machine asked for it back (SIGTERM), and the run has saved what it had. Nobody's mistake, so no HamError."""
