"""The error of a file that lacks pixels, or of a kind that is not read."""


class DamageError(Exception):
    """A file is damaged or truncated; the text says how, and quotes nothing of the file."""


class NoEndError(DamageError):
    """A JPEG has no end marker."""


class UnreadKindError(Exception):
    """A whole file of a kind that is not read; the text is the end of a message, after the image's name."""
