"""JSON files of annotations."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from runtime.errors import DataError


def read_json(path: Path) -> Any:
    """Read a JSON file; the last ones are kept, since a layout is recognised by their content.

    Raises:
        DataError: the file cannot be read, or is not JSON.
    """
    try:
        status = path.stat()
        return parsed(path, status.st_mtime_ns, status.st_size)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({(error.strerror or str(error)).lower()})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not JSON ({error}); export the annotations again") from error


@lru_cache(maxsize=4)
def parsed(path: Path, _time: int, _size: int) -> Any:
    """Parse a file that had this time and size; raises OSError, ValueError or RecursionError if that fails."""
    return json.loads(path.read_bytes())
