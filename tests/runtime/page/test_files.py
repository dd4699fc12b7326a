import json
import re

import pytest

from runtime.images.cutout import EDGE
from runtime.images.overlay import COLOURS, OPACITY
from runtime.page.files import alone_files, server_files


@pytest.mark.parametrize(("files", "start"), [(alone_files(), ""), (server_files(), "/")], ids=["alone", "server"])
def test_every_file_that_a_page_names_is_there_and_none_is_from_outside(files, start):
    page = files[start or "index.html"]
    assert page.media_type == "text/html; charset=utf-8"
    named = set(re.findall(r'(?:src|href)="([^"]+)"', page.content.decode())) - {"data:,"}
    for path, file in files.items():
        text = file.content.decode()
        assert set(re.findall(r"\w+://[\w.]+", text)) <= {"http://localhost"}, path
        if path.endswith(".js"):
            assert file.media_type == "text/javascript; charset=utf-8"
            named |= {
                f"page/{name}"
                for name in re.findall(r'from "\./([\w.]+)"|new URL\("(\w+\.js)"', text)
                for name in name
                if name
            }
    assert {f"{start}{name}" for name in named} == set(files) - {start or "index.html"}


def test_pages_hold_no_script_or_style_that_their_policy_refuses():
    text = alone_files()["index.html"].content.decode()
    assert re.findall(r"<script[^>]*>", text) == ['<script type="module" src="page/alone.js">']
    assert not re.search(r"<style|\sstyle=|\son\w+=|unsafe-inline|'unsafe-eval'", text)
    assert "default-src 'none'" in text


def test_colours_and_edges_are_those_of_python():
    (line,) = [
        line for line in alone_files()["page/look.js"].content.decode().splitlines() if line.startswith("export")
    ]
    look = json.loads(line.removeprefix("export const LOOK = ").removesuffix(";"))
    assert look == {"colours": [list(colour) for colour in COLOURS], "opacity": OPACITY, "edge": EDGE}
