"""Colour types of PNG files. Without imports, so that the help of a command need not load what writes them."""

GREY, RGB, INDEXED, RGBA = 0, 2, 3, 6
"""Colour types in a file's header."""
