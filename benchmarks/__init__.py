"""Is it the same, how fast is it, against what: `unet-bench`."""
