"""Every error that the library raises on purpose.

    UnetError
    ├── ImageError        an image or mask that cannot be read, or does not fit
    │   └── ImageMemoryError    one that this machine's memory cannot hold (a MemoryError, too)
    ├── ModelError        an .onnx file, or its card, that is invalid
    ├── DeviceError       a requested device that does not work here
    ├── OutputError       a file or folder that cannot be written
    ├── DataError         a training folder that cannot be trained on
    ├── ConfigError       a setting that is out of bounds
    ├── CheckpointError   a .pth file that cannot be loaded or resumed
    ├── NotFiniteError    training that gave NaN or infinity
    ├── ProofError        an exported graph that differs from its checkpoint
    ├── BusyError         a queue that is full when the caller does not wait
    └── ClosedError       an object that was closed, or belongs to another process

A message is one line: the thing, what was found, what was expected, what to do next. The command line tools print it
and exit with `exit_code`. Every other exception is a bug and keeps its traceback.

    DeviceWarning         device="auto" skipped a faster device; the message says which one and why
    ImageWarning          an image is taken, but perhaps not as it was meant: values that hardly differ in 8 bits, a
                          mask or an orientation that is not looked at, more pages, a truncated JPEG that was asked for
"""

import re
import sys
import warnings


class UnetError(Exception):
    """Base of all errors of this library; `str(error)` is one line for the user."""

    exit_code = 2


class ImageError(UnetError):
    """An image or mask cannot be read, or has an unexpected size, type or value."""


class ImageMemoryError(ImageError, MemoryError):
    """Decoding an image ran out of memory; a `MemoryError` as well."""


class ModelError(UnetError):
    """An ONNX file, its card or its golden sample is missing, damaged or out of bounds."""


class DeviceError(UnetError):
    """The requested device does not work here; the message names what is missing and how to fix it."""


class OutputError(UnetError):
    """A file or folder cannot be written."""


class DataError(UnetError):
    """A data folder lacks images or masks, or they do not match."""


class ConfigError(UnetError):
    """A setting is out of bounds or contradicts another one."""


class CheckpointError(UnetError):
    """A checkpoint cannot be loaded, or belongs to another kind of network."""


class NotFiniteError(UnetError):
    """A loss, a gradient or a weight became infinite or NaN; `remedy` says which settings may help."""

    def __init__(self, message: str, remedy: str = "a lower --lr or --clip-norm 1") -> None:
        super().__init__(message)
        self.remedy = remedy


class ProofError(UnetError):
    """The exported graph answers differently from the checkpoint; nothing was written.

    `card` is the `ModelCard` with the measured figures, if there are any.
    """

    exit_code = 1

    def __init__(self, message: str, card: object = None) -> None:
        super().__init__(message)
        self.card = card


class BusyError(UnetError):
    """Too many items wait and the caller does not: try again later, or answer HTTP 503."""


class ClosedError(UnetError):
    """The object was closed, or belongs to the process that this one was forked from."""


class DeviceWarning(UserWarning):
    """`device="auto"` skipped a faster device."""


class ImageWarning(UserWarning):
    """An image is taken, but perhaps not as it was meant; the message says what was found and what to do."""


def warn_user(message: str, category: type[Warning]) -> None:
    """Warn, and blame the line of the user's own code that led here."""
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == "runtime":
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def one_line(text: str) -> str:
    """Write a text on one line: white space becomes single spaces, and what a terminal would obey is escaped."""
    return shown(" ".join(text.split()))


UNSHOWN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that a terminal obeys instead of showing them (escapes, changes of direction), or that are no text."""


def shown(text: str) -> str:
    """Escape what a terminal would obey, as Python writes it in a string: names of files are other people's text."""
    return UNSHOWN.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)
