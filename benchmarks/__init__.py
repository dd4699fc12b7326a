"""Is it the same, how fast is it, against what: `unet-bench`; each part also as `python -m benchmarks.latency`."""
