"""`make demo`: what its end shows, and that its steps make what is shown. The steps themselves are the README's."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAKE = shutil.which("make")
STAMPS = ("demo/.data", "demo/.trained", "demo/run/model.onnx", "demo/.predicted", "demo/bench/report.md")

pytestmark = pytest.mark.skipif(MAKE is None, reason="needs make")


def make(folder, *arguments):
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = [MAKE, "demo", *arguments]  # no part of the make that runs the tests
    done = subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture
def finished(tmp_path):
    """A folder in which every step of the demo has run."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    written = ["pyproject.toml", "constraints.txt", ".venv/.ready", *STAMPS, "demo/metrics.txt"]
    for age, name in enumerate(written):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (age, age))
    (tmp_path / "demo" / "bench" / "report.md").write_text("| a table |\n")
    (tmp_path / "demo" / "metrics.txt").write_text(
        "demo/run/model.onnx on 16 val images of demo/data\n  image Dice  0.9\n"
        "typical image  demo/pictures/typical.png  (a, Dice 0.9)\n"
        "worst image    demo/pictures/worst.png  (b, Dice 0.8)\n"
    )
    return tmp_path


def test_it_ends_with_the_pictures_the_typical_one_first(finished):
    assert make(finished).splitlines() == [
        "",
        "typical image  demo/pictures/typical.png  (a, Dice 0.9)",
        "worst image    demo/pictures/worst.png  (b, Dice 0.8)",
        "overlays       demo/overlays/",
        "cut-outs       demo/cutouts/",
        "masks          demo/masks/",
        "training       demo/run/curves.png, demo/run/metrics.csv",
        "metrics        demo/metrics.txt",
        "benchmarks     demo/bench/report.md",
    ]


def test_its_steps_write_what_the_end_names(finished):
    steps = make(finished, "--dry-run", "--always-make")
    for option in (
        "-o demo/overlays ",
        "-o demo/cutouts ",
        "-o demo/masks ",
        "--pictures demo/pictures ",
        "--out demo/run ",
    ):
        assert option in steps
    assert re.search(r"unet_core\.evaluate .* > demo/metrics\.txt$", steps, re.M)
    assert re.search(r"unet-bench .* --out demo/bench .* > /dev/null$", steps, re.M)  # its tables are in report.md
