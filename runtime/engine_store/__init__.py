"""TensorRT's engines on disk: found by their key, locked, published, pruned, loaded from trusted folders only."""
