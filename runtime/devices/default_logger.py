"""ONNX Runtime's loggers: what reaches standard error.

A session has a logger, whose severity we set. But providers write to the default logger, which belongs to the whole
process, and so does ONNX Runtime while it makes them: one line for a GPU that is given by its number ("No registered
plugin EP device found", 1.26 and later), TensorRT's own warnings, and a line for some calls of CUDA that fail, before
the error is raised. A full arena is none of these.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import onnxruntime

LOG = logging.getLogger("runtime")

FATAL, ERROR, WARNING = 4, 3, 2
"""ONNX Runtime's log severities; a session's errors are raised, so they need not be printed too."""

TENSORRT = "TensorrtExecutionProvider"

_lock = threading.Lock()
_opening = 0


def session_severity() -> int:
    """Return the severity of a session's own logger: its warnings are shown if the logger "runtime" is set to DEBUG."""
    return WARNING if LOG.isEnabledFor(logging.DEBUG) else FATAL


def without_first_gpu(chain: list[tuple[str, dict[str, str]]]) -> list[tuple[str, dict[str, str]]]:
    """Leave the number of GPU 0 out of a chain of providers, since it is their default and they warn of any number."""
    return [
        (provider, {name: value for name, value in options.items() if (name, value) != ("device_id", "0")})
        for provider, options in chain
    ]


@contextmanager
def no_default_warnings(chain: list[tuple[str, dict[str, str]]]) -> Iterator[None]:
    """Keep the default logger's warnings back while a session opens on these providers, if it would warn.

    That logger does not tell its severity, so it has ONNX Runtime's own one afterwards. Its errors stay: what keeps
    TensorRT from building an engine is told nowhere else. With "runtime" at DEBUG the warnings stay too.
    """
    global _opening
    warns = any(name == TENSORRT or "device_id" in options for name, options in without_first_gpu(chain))
    if not warns or LOG.isEnabledFor(logging.DEBUG):
        yield
        return
    with _lock:
        _opening += 1
        onnxruntime.set_default_logger_severity(ERROR)
    try:
        yield
    finally:
        with _lock:
            _opening -= 1
            if not _opening:
                onnxruntime.set_default_logger_severity(WARNING)
