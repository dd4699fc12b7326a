"""The table of files and devices in docs/export.md, made from the report that was measured last."""

from pathlib import Path

from benchmarks.reporting.which import short_table
from benchmarks.results import Results

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/export.md"
REPORT = ROOT / "docs/benchmarks/xeon-amx-2-cores/which"
BEGIN, END = "<!-- from the report: make reference -->\n\n", "\n\n<!-- end -->"
"""Lines around the table."""


def page() -> str:
    """Return the page with the report's table."""
    text = PAGE.read_text()
    head, tail = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    return head + "\n".join(short_table(Results.read(REPORT))) + tail


if __name__ == "__main__":
    PAGE.write_text(page())
    print(PAGE)
