"""Trust in TensorRT's engines, which are executable code; `runtime.support.permissions` has the rules."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.errors import DeviceError
from runtime.support.permissions import Trust

ENGINES = Trust(
    error=DeviceError,
    owner="the engine cache",
    files="engines",
    why="are executable code",
    elsewhere="give ProviderOptions(engine_folder=...)",
)


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turn an OSError in the block into a `DeviceError` about the engines' folder."""
    try:
        yield
    except OSError as error:
        raise DeviceError(
            f"{folder}: cannot keep engines here ({(error.strerror or str(error)).lower()}); give "
            "ProviderOptions(engine_folder=...), or engine_cache=False to build one at every start"
        ) from error
