"""Files that a test changed, with a digest that fits the change: what else is wrong with them then shows."""

from runtime.model_file.digest import DIGEST_KEY, seal


def save_sealed(model, path):
    """Write an onnx model with a new digest, and return the path."""
    kept = [entry for entry in model.metadata_props if entry.key != DIGEST_KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    path.write_bytes(model.SerializeToString())
    seal(path)
    return path
