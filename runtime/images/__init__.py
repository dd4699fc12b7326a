"""Pixels in and out: decoding, arrays, PNG files, overlays and polygons."""
