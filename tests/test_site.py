"""make docs: the site is built without a warning, links and anchors lead somewhere, nothing comes from outside."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_site_is_built_and_stands_alone(tmp_path):
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(site)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
    pages = {
        path.relative_to(tmp_path / "site").as_posix(): path.read_text() for path in (tmp_path / "site").rglob("*.html")
    }
    assert "Train a U-Net in PyTorch" in pages["index.html"]  # README.md
    assert 'id="runtime.predictor.Predictor.stream"' in pages["api/runtime.html"]
    assert "cv2.VideoCapture" in re.sub(r"<[^>]*>", "", pages["examples/index.html"])  # the program, not only its name
    loaded = re.compile(r"<(?:script|img|iframe|link rel=\"?stylesheet\"?)[^>]*(?:src|href)=\"?(https?:|//)")
    assert [name for name, text in pages.items() if loaded.search(text)] == []
    assert not list(site.rglob("*.md"))


def hooks():
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "site" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("page", "text", "expected"),
    [
        ("index.md", "[a](docs/gpu.md#devices)", "[a](gpu.md#devices)"),
        ("index.md", "![a](docs/images/demo.png)", "![a](images/demo.png)"),
        ("index.md", "[a](CHANGELOG.md)", "[a](changelog.md)"),
        ("winograd.md", "[a](../README.md#install)", "[a](index.md#install)"),
        ("examples/README.md", "[a](../serving.md)", "[a](../serving.md)"),
        ("gpu.md", "[a](#devices) [b](https://example.org/x)", "[a](#devices) [b](https://example.org/x)"),
    ],
)
def test_links_between_files_become_links_between_pages(page, text, expected):
    pytest.importorskip("mkdocs")
    shown = SimpleNamespace(file=SimpleNamespace(src_uri=page))
    assert hooks().on_page_markdown(text, page=shown, config=None, files=None) == expected


def test_short_words_of_code_are_kept_on_one_line():
    pytest.importorskip("mkdocs")
    shown = hooks().on_page_content("<p><code>unet-export --web</code>", page=None, config=None, files=None)
    assert shown == '<p><code><span class="word">unet-export</span> <span class="word">--web</span></code>'
    programs = "<pre><code>unet-export model.pth\n</code></pre>"
    assert hooks().on_page_content(programs, page=None, config=None, files=None) == programs
