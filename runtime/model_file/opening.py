"""Opening a model's file: what cannot be an ONNX file, such as a checkpoint, is refused by name."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.errors import ModelError
from runtime.model_file.protobuf_reader import Wire, WireError

MAX_MODEL = 2**31 - 1
"""Maximum size of an ONNX file, in bytes, which is protobuf's own limit."""

ZIP_MAGIC = b"PK\x03\x04"
"""First bytes of a file of `torch.save`."""
ORT_MAGIC = b"ORTM"
"""Bytes 4 to 7 of a file in ONNX Runtime's own format, which is not protobuf and not supported."""

IMAGES = {b"\xff\xd8\xff": "JPEG", b"\x89PNG": "PNG", b"GIF8": "GIF", b"BM": "BMP", b"RIFF": "WebP"}
IMAGES |= dict.fromkeys((b"II*\0", b"MM\0*"), "TIFF")
"""First bytes of image files, and their formats."""


@contextmanager
def open_wire(path: str | os.PathLike[str]) -> Iterator[tuple[Wire, int]]:
    """Open an ONNX file and give a reader of its fields and the file's size in bytes.

    Raises:
        ModelError: the file does not exist, cannot be an ONNX file, or the block raised a `WireError`.
    """
    model = Path(path)
    try:
        if model.is_dir():
            raise ModelError(f"{model}: is a folder, expected an .onnx file")
        if not model.exists():
            raise ModelError(f"{model}: no such file; make it with: unet-export model.pth")
        if not model.is_file():  # reading a pipe would wait, a device has no end
            raise ModelError(f"{model}: is a pipe or a device, expected an .onnx file")
        with open(model, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if not size:
                raise ModelError(f"{model}: is empty (0 bytes), expected an ONNX file")
            if size > MAX_MODEL:
                raise ModelError(f"{model}: has {size} bytes, expected at most {MAX_MODEL}")
            head = file.read(8)
            if head[4:] == ORT_MAGIC:
                raise ModelError(f"{model}: is in ONNX Runtime's own format, expected an .onnx file")
            if head[:4] == ZIP_MAGIC:
                import shlex

                command = f"unet-export {shlex.quote(str(model))}"
                raise ModelError(f"{model}: looks like a PyTorch checkpoint; convert it with: {command}")
            for start, kind in IMAGES.items():
                if head.startswith(start):
                    raise ModelError(
                        f"{model}: looks like an image ({kind}), expected an .onnx file; are model and image swapped?"
                    )
            yield Wire(file, size), size
    except WireError as error:
        raise ModelError(f"{model}: is not an ONNX file, or is truncated ({error}); copy or export it again") from error
    except OSError as error:
        raise ModelError(f"{model}: cannot be read ({error.strerror})") from error
