"""Where a model runs: what is available, sessions on each device, TensorRT's engines on disk."""
