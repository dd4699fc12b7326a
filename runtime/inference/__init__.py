"""One image from its file to the answer, and many: stages, tiles, batches, streams."""
