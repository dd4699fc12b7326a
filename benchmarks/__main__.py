"""Entry point of `unet-bench` and of `python -m benchmarks`; imports the command when it runs."""

from runtime.commands.entry import start


def bench() -> None:
    """Run unet-bench."""
    start("benchmarks.cli", extra="bench")


if __name__ == "__main__":
    bench()
