"""Headless Chromium, and a server of static files on the loopback address for it."""

import functools
import os
import shutil
import threading
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)

ONNXRUNTIME_WEB = Path(__file__).parents[2] / ".venv" / "onnxruntime-web" / "node_modules" / "onnxruntime-web"
"""The npm package that `make test` installs."""

WAIT = 60_000
"""Milliseconds after which a page that does not get there fails its test."""


@contextmanager
def browsing():
    """Start Chromium, or skip the test; yields playwright's browser."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt install chromium")
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[dev]'")
    with sync_api.sync_playwright() as library:
        browser = library.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        try:
            yield browser
        finally:
            browser.close()


def onnxruntime_web():
    """Return the folder of the npm package, or skip the test."""
    folder = Path(os.environ.get("UNET_ONNXRUNTIME_WEB", ONNXRUNTIME_WEB))
    if not folder.is_dir():
        pytest.skip(f"needs the npm package onnxruntime-web in {folder}: make test, where npm is installed")
    return folder


@contextmanager
def serving(folder, isolated=False):
    """Serve a folder's files at an address that is yielded, and stop; `isolated` permits WebAssembly's threads."""

    class Handler(SimpleHTTPRequestHandler):
        def end_headers(self):
            if isolated:
                self.send_header("Cross-Origin-Opener-Policy", "same-origin")
                self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
            super().end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def opened(browser, address, **options):
    """Open a page whose model is ready, and note in `page.problems` what it logs and asks of others."""
    page = browser.new_context(**options).new_page()
    page.set_default_timeout(WAIT)
    page.problems = []
    page.on(
        "console", lambda message: page.problems.append(message.text) if message.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("request", lambda request: None if is_ours(request.url, address) else page.problems.append(request.url))
    page.goto(address)
    page.wait_for_selector("main:not([hidden]), .problem[role=alert]:not([hidden])")
    return page


def is_ours(url, address):
    """Return True if a request stays on the page's own server."""
    return url.startswith((address, f"blob:{address}", "data:"))


def give(page, *files):
    """Give files to a page and wait until all are done."""
    page.locator("#files").set_input_files([str(file) for file in files])
    finished(page)


def drop(page, file):
    """Drop a PNG file on a page."""
    page.evaluate(
        """([name, values]) => {
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([new Uint8Array(values)], name, { type: "image/png" }));
            document.body.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
        }""",
        [file.name, list(file.read_bytes())],
    )


def finished(page):
    """Wait until a page has nothing to do and has drawn it."""
    page.wait_for_selector("body[data-busy=false]")  # a function would need eval, which the page forbids
    page.evaluate("new Promise((resolve) => setTimeout(() => requestAnimationFrame(() => setTimeout(resolve)), 200))")


def pixels(page, selector="#canvas"):
    """Return the pixels of a canvas, uint8 [height, width, 4]."""
    import numpy as np

    data = page.evaluate(
        """(selector) => {
            const canvas = document.querySelector(selector), copy = new OffscreenCanvas(canvas.width, canvas.height);
            const pen = copy.getContext("2d", { willReadFrequently: true }); // Chromium warns of reading the page's own
            pen.drawImage(canvas, 0, 0);
            return [canvas.height, canvas.width, [...pen.getImageData(0, 0, canvas.width, canvas.height).data]];
        }""",
        selector,
    )
    return np.array(data[2], np.uint8).reshape(data[0], data[1], 4)
