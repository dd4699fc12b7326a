"""Warnings that are given once a process for each subject."""

from runtime.errors import ImageWarning, warn_user

WARNED: set[str] = set()
"""Subjects that this process has warned of."""


def is_told(subject: str) -> bool:
    """Return True if this process has warned of a subject already."""
    return subject in WARNED


def warn_once(subject: str, text: str) -> None:
    """Warn of a subject, unless this process has done so already."""
    if not is_told(subject):
        WARNED.add(subject)
        warn_user(text, ImageWarning)
