"""Sizes of pictures: "240x160", width first, where people read and write them; (height, width) in Python."""

import re
from typing import Any

WXH = re.compile(r"\s*([0-9]{1,6})\s*[xX]\s*([0-9]{1,6})\s*")


def parse_size(size: Any) -> Any:
    """Return (height, width) of a text "WIDTHxHEIGHT"; everything else stays as it is."""
    found = WXH.fullmatch(size) if isinstance(size, str) else None
    return (int(found[2]), int(found[1])) if found else size


def size_text(size: tuple[int, int]) -> str:
    """Write (height, width) as "WIDTHxHEIGHT"."""
    return f"{size[1]}x{size[0]}"


def batch_text(shape: tuple[int, int, int]) -> str:
    """Write (batch, height, width) as "BATCH of WIDTHxHEIGHT"."""
    return f"{shape[0]} of {size_text(shape[1:])}"
