"""The first bytes of image files, by which their format is known, whatever they are called."""

import re

from runtime.image_files import heif

JPEG = b"\xff\xd8\xff"
PNG = b"\x89PNG\r\n\x1a\n"
GIF = (b"GIF87a", b"GIF89a")
BMP = b"BM"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"II\0*", b"MM*\0")
WEBP = b"RIFF"
NETPBM = re.compile(rb"P[1-6][\s#]")
NPY, ZIP = b"\x93NUMPY", b"PK\x03\x04"
"""NumPy's files, .npy and .npz, which are images of any number of channels."""

BMP_HEADERS = frozenset(size.to_bytes(4, "little") for size in (12, 16, 40, 52, 56, 64, 108, 124))
"""Bytes 14 to 18 of a BMP, its header's size: "BM" also begins words."""

DICOM = "DICOM, save its pixels as a PNG or TIFF of 16 bits, with pydicom or DCMTK's dcmj2pnm +on2"
NIFTI = "NIfTI, save its slices as the pages of a TIFF, with nibabel and tifffile"
OTHER_VOLUME = "a volume, save its slices as the pages of a TIFF, with SimpleITK"

MEDICAL = {
    ".dcm": DICOM,
    ".dicom": DICOM,
    ".nii": NIFTI,
    ".nii.gz": NIFTI,
    ".nrrd": OTHER_VOLUME,
    ".mha": OTHER_VOLUME,
    ".mhd": OTHER_VOLUME,
}
"""Medical formats by the suffix of their files, and how to convert them into images that are read."""

NIFTI_MARKS = (b"n+1\0", b"ni1\0")
"""Bytes 344 to 348 of a NIfTI file."""


def medical_format(content: bytes) -> str:
    """Return the entry of `MEDICAL` for the content of a file; "" for any other."""
    if content[128:132] == b"DICM":
        return DICOM
    return NIFTI if content[344:348] in NIFTI_MARKS else ""


def is_known_start(start: bytes) -> bool:
    """Return True for the first 32 bytes of a file that may be decoded."""
    if start.startswith(BMP):
        return start[14:18] in BMP_HEADERS
    module = heif.module_of(start)
    return (
        start.startswith((JPEG, PNG, *GIF, *TIFF, WEBP))
        or NETPBM.match(start) is not None
        or (module is not None and heif.is_installed(module))
    )
