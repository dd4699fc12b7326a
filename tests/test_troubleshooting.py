"""docs/troubleshooting.md has a row for each error and warning of the sources, and no row without a message."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from messages import VARIES, messages

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "troubleshooting.md").read_text()
WITHOUT_MESSAGES = ("There is no message", "Names:", "Notes", "Troubleshooting")
SETTINGS = "Settings and options"
LETTERS = 8
"""A template with fewer letters of its own is made elsewhere, from texts that the test does not see."""

MADE_ELSEWHERE = {"BusyError", "the golden sample"}
"""Texts of the first column that no single `raise` has: the name of an error, a text put together from several."""


def rows():
    """Yield (section, pattern) of each message that the page lists: the quoted texts of the first column."""
    for section in re.split(r"^#+ ", TEXT, flags=re.M)[1:]:
        title = section.partition("\n")[0]
        if not title.startswith(WITHOUT_MESSAGES):
            for cell in re.findall(r"^\| ([^|]*`[^|]*) \|", section, re.M):
                yield from ((title, pattern) for pattern in re.findall(r"`([^`]+)`", cell))


def fits(pattern, message):
    """Tell if the pieces of a pattern follow one another in a message."""
    pieces = [re.escape(piece) for piece in pattern.split(VARIES) if piece.strip()]
    return re.search(".*".join(pieces), message) is not None


def letters(text):
    return sum(map(str.isalpha, text))


def test_a_pattern_fits_messages_that_have_its_pieces_in_order():
    assert fits("has … pages, expected", "a.tif: has 3 pages, expected one")
    assert not fits("has … pages, expected", "a.tif: expected one, has 3 pages")
    assert not fits("is closed", "is open")


def test_each_message_of_the_sources_has_a_row():
    found = list(messages())
    assert len(found) > 400
    assert ("ImageError", "…: no such file") in {(kind, text) for kind, _, text in found}
    table = list(rows())
    missing = [
        f"{place}: {kind}: {text}"
        for kind, place, text in found
        if letters(text) >= LETTERS
        and not any(fits(pattern, text) for title, pattern in table if title != SETTINGS or kind == "ConfigError")
    ]
    assert not missing, "messages without a row in docs/troubleshooting.md:\n" + "\n".join(missing)


def test_each_row_has_a_message():
    templates = [text for _, _, text in messages()]
    stale = [
        pattern
        for _, pattern in rows()
        if pattern not in MADE_ELSEWHERE and not any(fits(pattern, text) for text in templates)
    ]
    assert stale == []


OWN = "import runtime; print(runtime.predict)"


NO_EDITABLE_INSTALL = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in getattr(finder, "__module__", "")]
"""


@pytest.fixture
def python(tmp_path, tmp_path_factory):
    """Runs Python in `tmp_path`, where the packages are found on a path, as they are once pip has installed them."""
    site = tmp_path_factory.mktemp("site")
    (site / "sitecustomize.py").write_text(NO_EDITABLE_INSTALL)
    environment = {"PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]), "PATH": ""}

    def run(*arguments):
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    return run


@pytest.mark.parametrize("name", ["runtime.py", "runtime/__init__.py"])
def test_a_users_own_file_is_found_first_and_p_leaves_it_out(tmp_path, python, name):
    (tmp_path / "program.py").write_text(OWN)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    said = "module 'runtime' has no attribute 'predict'"
    assert said in python("program.py")
    assert f"`{said}`" in TEXT
    assert python("-P", "program.py").startswith("<function predict")
    assert str(tmp_path) in python("-c", "import runtime; print(runtime.__file__)")


def test_a_folder_without_init_does_no_harm(tmp_path, python):
    (tmp_path / "program.py").write_text(OWN)
    (tmp_path / "runtime").mkdir()
    (tmp_path / "runtime" / "notes.txt").touch()
    assert python("program.py").startswith("<function predict")


def test_python_m_finds_a_users_file_and_p_leaves_it_out(tmp_path, python):
    (tmp_path / "runtime.py").touch()
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__init__.py").touch()
    for module, said in (
        ("unet_core.train", "No module named 'runtime.commands'; 'runtime' is not a package"),
        ("benchmarks.networks", "No module named benchmarks.networks"),
    ):
        assert said in python("-m", module, "--version")
        assert f"`{said}`" in TEXT
        assert python("-P", "-m", module, "--version").startswith(f"python -m {module} ")
