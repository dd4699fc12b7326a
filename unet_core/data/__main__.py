"""Starts `python -m unet_core.data`, which is `unet-data`: a command above this room, so it is imported by name."""

from runtime.commands.entry import start

if __name__ == "__main__":
    start("unet_core.datasets", extra="data")
