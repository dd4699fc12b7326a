"""Images and masks on disk, as pairs, labels, cached records and batches for training."""
