"""The HTTP server of `unet-serve`: requests, their queue and limits, models that are swapped, metrics and logs."""
