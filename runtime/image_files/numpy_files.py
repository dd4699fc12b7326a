"""Arrays in NumPy's files: that of an .npy file, and the one of an .npz file. Nothing in them is unpickled."""

import io
import math
import zlib
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from runtime.image_files import starts
from runtime.image_files.damage import DamageError, UnreadKindError
from runtime.image_files.limits import Limits

IMAGE_NAMES = ("image", "arr_0")
"""Names by which the image is found among several arrays of an .npz file; the second one is NumPy's own."""

LISTED = 5
"""Maximum number of names of arrays in a message."""

HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
"""Functions that read the header of each version; 3.0 is for records with names, which are no images."""


def is_numpy_file(content: bytes) -> bool:
    """Return True for a file that begins as .npy and .npz files do."""
    return content.startswith((starts.NPY, starts.ZIP))


def read_array(content: bytes, limits: Limits) -> NDArray[Any]:
    """Return the array of an .npy or .npz file, of any shape and type but objects; it may be read-only.

    Raises:
        DamageError: the file is damaged or truncated.
        UnreadKindError: it holds Python objects, or several arrays of which none is called an image.
        LimitError: it exceeds the limits.
    """
    content = npy_content(content, limits)
    shape, is_fortran, dtype, start = read_header(content)
    limits.check_pixels(math.prod(shape[1:2]), math.prod(shape[:1]))
    count = math.prod(shape)
    limits.check_memory(2 * count * dtype.itemsize + count)
    if len(content) - start < count * dtype.itemsize:
        raise DamageError("it holds fewer values than its header says")
    return np.frombuffer(content, dtype, count, start).reshape(shape, order="F" if is_fortran else "C")


def size_of(content: bytes, limits: Limits) -> tuple[int, int]:
    """Return (width, height) of the array [height, width, ...]; errors as of `read_array`."""
    shape, *_ = read_header(npy_content(content, limits))
    if len(shape) < 2:
        raise UnreadKindError(f"is an array of shape {list(shape)}, expected [height, width, channels]")
    limits.check_pixels(shape[1], shape[0])
    return shape[1], shape[0]


def is_deep(content: bytes, limits: Limits) -> bool:
    """Return True for integers of more than 8 bits; errors as of `read_array`."""
    dtype = read_header(npy_content(content, limits))[2]
    return dtype.kind == "u" and dtype.itemsize > 1


def read_header(content: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Return shape, True for Fortran's order, the type, and the position of the first value of an .npy file."""
    file = io.BytesIO(content)
    read = HEADERS.get((content[6], content[7]) if len(content) > 7 else (1, 0))
    if read is None:
        raise UnreadKindError("is a NumPy file of a version that is not read; save it with numpy.save")
    try:
        npy.read_magic(file)
        shape, is_fortran, dtype = read(file)
    except Exception as error:  # of many types: the header is parsed as Python
        raise DamageError("its header makes no sense") from error
    if dtype.hasobject or dtype.names is not None:
        raise UnreadKindError(
            "holds Python objects or records, which are never loaded; save an array of numbers with numpy.save"
        )
    if any(side < 0 for side in shape):
        raise DamageError("its header makes no sense")
    return shape, is_fortran, dtype, file.tell()


def npy_content(content: bytes, limits: Limits) -> bytes:
    """Return an .npy file as it is, and the member of an .npz file that holds the image."""
    if content.startswith(starts.NPY):
        return content
    import zipfile  # which takes milliseconds that a cold start need not spend

    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            arrays = {item.filename[:-4]: item for item in archive.infolist() if item.filename.endswith(".npy")}
            named = next((name for name in IMAGE_NAMES if name in arrays), None)
            if len(arrays) != 1 and named is None:
                names = [name for name in arrays if name.isidentifier()][:LISTED]
                listed = f" ({', '.join(names)})" if names else ""
                raise UnreadKindError(
                    f"is an archive of {len(arrays)} arrays{listed}, expected one, or one that is called image; "
                    "save it with numpy.savez_compressed(path, image=array)"
                )
            member = arrays[named] if named is not None else next(iter(arrays.values()))
            limits.check_file(member.file_size)
            with archive.open(member) as file:
                return file.read(member.file_size)  # and no more, whatever it would unfold to
    except NotImplementedError as error:
        raise UnreadKindError("is an archive with a compression that is not read; save it with NumPy") from error
    except RuntimeError as error:  # of zipfile, for a password
        raise UnreadKindError("is an encrypted archive, which is not read; save it with NumPy") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise DamageError("its archive is cut off or changed") from error
