"""The files of the page, as a server sends them and as an export writes them.

`SHARED` draws pictures and answers; `alone.js` and `engine.js` run a model in the browser, `server.js` asks a server.
"""

import json
from importlib.resources import files
from typing import NamedTuple

from runtime.images.cutout import EDGE
from runtime.images.overlay import COLOURS, OPACITY

FOLDER = "page"
"""Folder of the files beside the page's HTML."""

SHARED = ("answer.js", "page.css", "resample.js", "view.js")
ALONE = (*SHARED, "alone.js", "engine.js", "fit.js", "whole.js")
SERVER = (*SHARED, "server.js")

MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}


class StaticFile(NamedTuple):
    """A file of the page, and the media type that browsers demand of it."""

    content: bytes
    media_type: str


def alone_files() -> dict[str, StaticFile]:
    """Return the files of a page that runs a model by itself, by their paths: index.html, page/view.js, ..."""
    return {"index.html": _html("alone"), **_parts(ALONE)}


def server_files() -> dict[str, StaticFile]:
    """Return the files of the page of a server, by the paths of their addresses: /, /page/view.js, ..."""
    return {"/": _html("server"), **{f"/{path}": file for path, file in _parts(SERVER).items()}}


def _html(source: str) -> StaticFile:
    text = files(__package__).joinpath("page.html").read_text("utf-8")
    return StaticFile(text.replace("SOURCE.js", f"{source}.js").encode(), MEDIA_TYPES[".html"])


def _parts(names: tuple[str, ...]) -> dict[str, StaticFile]:
    """Read files of this folder, and write the constants of drawing that JavaScript and Python share."""
    folder = files(__package__)
    found = {name: folder.joinpath(name).read_bytes() for name in names}
    look = json.dumps({"colours": COLOURS, "opacity": OPACITY, "edge": EDGE})
    found["look.js"] = (
        f"// Colours, opacity of the tint, and width of a cut-out's edge.\nexport const LOOK = {look};\n".encode()
    )
    return {
        f"{FOLDER}/{name}": StaticFile(content, MEDIA_TYPES[name[name.rindex(".") :]])
        for name, content in found.items()
    }
