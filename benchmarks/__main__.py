"""unet-bench: its module is imported when it is run, and kind without PyTorch."""

from runtime.commands.entry import start


def bench() -> None:
    """unet-bench."""
    start("benchmarks.cli", extra="bench")


if __name__ == "__main__":
    bench()
