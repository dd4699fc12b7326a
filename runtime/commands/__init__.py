"""The commands `unet-predict` and `unet-doctor`, and what all commands share."""
