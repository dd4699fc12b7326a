"""A server in a thread of the test process, or as a process of its own, and requests to it."""

import http.client
import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from PIL import Image
from uvicorn import Server

from runtime.serve.app import make_app
from runtime.serve.process import address_of, bound, config_of
from runtime.serve.service import Service
from runtime.serve.settings import ServerSettings

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Reply:
    """What a server answered; header names in lower case."""

    status: int
    headers: dict
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def error(self):
        return self.json["error"]


def ask(url, path, body=None, method=None, **headers):
    """Send one request on a connection of its own; `_` in a header's name stands for `-`."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
    try:
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        connection.request(method or ("GET" if body is None else "POST"), path, body, named)
        answer = connection.getresponse()
        return Reply(answer.status, {name.lower(): text for name, text in answer.getheaders()}, answer.read())
    finally:
        connection.close()


def png(pixels):
    """Return a PNG file with these pixels."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def multipart(image=None, filename="picture.png", part="image", **fields):
    """Return the body of a form with a file, and its Content-Type."""
    pieces = [
        f'--seam\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{text}\r\n'.encode()
        for name, text in fields.items()
    ]
    if image is not None:
        head = f'--seam\r\nContent-Disposition: form-data; name="{part}"; filename="{filename}"\r\n\r\n'
        pieces.append(head.encode() + image + b"\r\n")
    return b"".join([*pieces, b"--seam--\r\n"]), "multipart/form-data; boundary=seam"


@dataclass(frozen=True)
class Served:
    """A running server: its address and, in this process, its `Service`."""

    url: str
    service: Service

    def ask(self, path, body=None, **more):
        return ask(self.url, path, body, **more)

    def predict(self, image, query="", **headers):
        return ask(self.url, f"/v1/predict{query}", image, **headers)

    def connect(self):
        """Open a bare connection."""
        address = urlsplit(self.url)
        return socket.create_connection((address.hostname, address.port), timeout=60)


@contextmanager
def served(models, api_key=None, **settings):
    """Serve {name: path} in a thread of this process."""
    known = {"device": "cpu", "threads": 1, "look_seconds": 0.02} | settings
    chosen = ServerSettings(models=tuple(models.items()), port=0, **known)
    service = Service(chosen, api_key)
    server = Server(config_of(chosen, make_app(service), log_config=None))
    with bound("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, args=([listener],), name="served")
        thread.start()
        try:
            yield Served(address_of(listener), service)
        finally:
            server.should_exit = True
            thread.join()


class RunGate:
    """Holds a model back: a run waits until `open` is called; `runs` counts those that came."""

    def __init__(self, session):
        self._opened, self._run, self.runs = threading.Event(), session.run_steady, 0
        self.entered = threading.Semaphore(0)
        session.run_steady = self._wait

    def _wait(self, batch):
        self.runs += 1
        self.entered.release()
        assert self._opened.wait(60)
        return self._run(batch)

    def open(self):
        self._opened.set()


class ServerProcess:
    """`unet-serve` as a process; use it as a context manager. `lines` are those of its log so far."""

    def __init__(self, *arguments, env=None):
        self._arguments, self._env = [str(one) for one in arguments], env or {}
        self.lines = []

    def __enter__(self):
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "from runtime.commands.entry import serve; serve()",
                *self._arguments,
                "--port",
                "0",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | self._env,
            start_new_session=True,
        )
        self._read = threading.Thread(target=self._collect)
        self._read.start()
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._read.join()
        self.process.stdout.close()
        self.process.stderr.close()

    def _collect(self):
        for line in self.process.stdout:
            self.lines.append(json.loads(line))

    def wait_for(self, found, seconds=300):
        """Wait until `found` returns something true of the log's lines, and return that."""
        end = time.monotonic() + seconds
        while not (value := found(self.lines)):
            assert time.monotonic() < end, self.lines
            assert self.process.poll() is None, (self.lines, self.process.stderr.read())
            time.sleep(0.02)
        return value

    def url(self):
        """Return the address, when all workers answer."""
        url = self.wait_for(lambda lines: next((line["url"] for line in lines if "url" in line), None))
        workers = self.lines[0]["workers"]
        self.wait_for(lambda lines: sum("startup complete" in line["message"] for line in lines) >= workers)
        return url

    def stop(self, number=signal.SIGTERM):
        """Send a signal, and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(300)


def patiently(condition, seconds=300):
    """Wait until a condition of processes is true, which takes long where others compute, too."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.02)


def is_closed_within(connection, seconds):
    """Return True if the other side closes a connection in time."""
    return bool(select.select([connection], [], [], seconds)[0]) and connection.recv(1) == b""
