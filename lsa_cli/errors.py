"""What can go wrong, and the exit code it leads to. A message says what, where, and the next move."""

EXIT_OK = 0
EXIT_GATE = 1  # a gate was breached, or could not be decided
EXIT_USAGE = 2  # the user can mend it: options, configuration, a checkpoint or data set that cannot be used
EXIT_BROKEN = 3  # the run broke on the way; what was measured is on disk
EXIT_INTERRUPTED = 130


class LsaError(Exception):
    """Base of every error that ends in one sentence instead of a traceback."""

    exit_code = EXIT_USAGE


class UsageError(LsaError):
    """An option, a spec or a configuration file that makes no sense."""


class CheckpointError(LsaError):
    """A model file that cannot be read, or does not fit its architecture."""


class DataError(LsaError):
    """A data set that cannot be read, or does not fit the model."""


class LayerError(LsaError):
    """A layer selection that names nothing the network has."""


class NumericalError(LsaError):
    """A network whose outputs cannot carry a verdict: NaN, constant, not logits."""


class RunError(LsaError):
    """The run broke on the way: out of memory, a file that could no longer be written."""

    exit_code = EXIT_BROKEN
