"""Cases: one file for each question that `unet-bench` measures."""
