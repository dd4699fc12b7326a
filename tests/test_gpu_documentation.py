"""docs/gpu.md: every line about GPUs says what it rests on."""

import re
from pathlib import Path

TEXT = (Path(__file__).parents[1] / "docs" / "gpu.md").read_text()
SECTIONS = (
    "What has to be installed",
    "What is known about the CUDA provider",
    "What is known about the TensorRT provider",
)


def test_every_line_says_what_it_rests_on():
    table = TEXT[TEXT.index("| mark |") : TEXT.index("\n\n", TEXT.index("| mark |"))]
    marks = re.findall(r"^\| \*\*([\w-]+)\*\* \|", table, re.M)
    assert marks == ["GPU", "stand-in", "CPU", "read", "open"]
    for name in SECTIONS:
        section = TEXT.split(f"\n## {name}\n")[1].split("\n## ")[0]
        lines = re.findall(r"^- .*", section, re.M)
        assert len(lines) >= 6
        unmarked = [line for line in lines if not re.match(rf"- \*\*({'|'.join(marks)})\*\* · ", line)]
        assert unmarked == []
