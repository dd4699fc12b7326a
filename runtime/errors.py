"""Every error that the library raises on purpose.

    UnetError
    ├── ImageError        an image or mask that cannot be read, or does not fit
    ├── ModelError        an .onnx file, or its card, that cannot be used
    ├── DeviceError       the device that was asked for does not run here
    ├── OutputError       a file or folder that cannot be written
    ├── DataError         a training folder that cannot be trained on
    ├── ConfigError       a setting out of its bounds
    ├── CheckpointError   a .pth file that cannot be loaded or resumed
    ├── NotFiniteError    training that ran into NaN or infinity
    ├── ProofError        an exported graph that does not equal its checkpoint
    ├── BusyError         a queue that is full, where the caller does not want to wait
    └── ClosedError       something that was closed, or belongs to another process

A message is one line: the thing, what was found, what was expected, what to do next. The command line tools print that
line and exit with `exit_code`; everything else is a bug and keeps its traceback.

    DeviceWarning         device="auto" skipped a faster device; says which, and why
"""


class UnetError(Exception):
    """Base of all errors of this library; `str(error)` is one line meant for the user."""

    exit_code = 2


class ImageError(UnetError):
    """An image or mask cannot be read, or has a size, type or value that was not expected."""


class ModelError(UnetError):
    """An ONNX file, its card or its golden sample is absent, damaged or out of bounds."""


class DeviceError(UnetError):
    """The requested device does not run here; the message names what is missing and how to mend it."""


class OutputError(UnetError):
    """A file or folder cannot be written."""


class DataError(UnetError):
    """A data folder lacks images or masks, or they do not match."""


class ConfigError(UnetError):
    """A setting is out of its bounds or contradicts another one."""


class CheckpointError(UnetError):
    """A checkpoint cannot be loaded, or is not the checkpoint of such a network."""


class NotFiniteError(UnetError):
    """A loss, a gradient or a weight became infinite or NaN; `remedy` says which settings may help."""

    def __init__(self, message: str, remedy: str = "a lower --lr or --clip-norm 1") -> None:
        super().__init__(message)
        self.remedy = remedy


class ProofError(UnetError):
    """The exported graph answers differently from the checkpoint; nothing was written.

    `card` is the `ModelCard` with the figures, where they were taken.
    """

    exit_code = 1

    def __init__(self, message: str, card: object = None) -> None:
        super().__init__(message)
        self.card = card


class BusyError(UnetError):
    """Too many items wait already, and the caller does not want to wait: try again later, or answer "503" upstream."""


class ClosedError(UnetError):
    """A queue or stream was closed, or belongs to the process that this one was forked from."""


class DeviceWarning(UserWarning):
    """`device="auto"` passed over a faster device."""


def one_line(text: str) -> str:
    """Fold line breaks, so that a library's long message stays one line."""
    return " ".join(text.split())
