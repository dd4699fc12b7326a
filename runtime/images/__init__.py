"""Pixels in and out: arrays, PNG files, overlays and polygons."""
