"""Is it the same, and how fast is it: `python -m benchmarks.parity`, `python -m benchmarks.latency`."""
