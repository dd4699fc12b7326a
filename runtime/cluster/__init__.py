"""Many images on the machines of a Ray cluster: workers that hold a predictor each, and who gets which images."""
