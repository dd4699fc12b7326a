"""The processes of a server: one, or several workers on one socket under a parent that starts them anew."""

import logging.config
import os
import signal
import socket
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from typing import Any

from fastapi import FastAPI
from uvicorn import Config, Server
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import Process

from runtime.errors import ConfigError, DeviceError, UnetError, one_line
from runtime.model_file.digest import check_digest
from runtime.model_file.reader import read_model
from runtime.serve.app import make_app
from runtime.serve.connections import TimedProtocol
from runtime.serve.logs import LOG_CONFIG, tell
from runtime.serve.metrics import FOLDER
from runtime.serve.service import Service
from runtime.serve.settings import API_KEY, MIN_KEY, ServerSettings
from runtime.support.cpu_count import available_threads
from runtime.support.files import reason_of, require_temporary_folder

GRACE = 5
"""Seconds after the time limit of requests in which a server that stops still waits for them."""

RETRY = 5
"""Seconds between two attempts to start a worker that could not open the models."""


def serve(settings: ServerSettings) -> None:
    """Serve until SIGTERM or Ctrl-C: then no new request is taken, and those that are there are answered.

    Raises:
        UnetError: a model cannot be opened, the address is taken, or the API key is too short.
    """
    key = api_key()
    with bound(settings.host, settings.port) as listener:
        logging.config.dictConfig(LOG_CONFIG)
        settings = replace(settings, host=listener.getsockname()[0])  # a name, or 127.1, may be this machine alone
        if settings.workers == 1:
            serve_here(settings, key, listener)
        else:
            serve_by_workers(settings, listener)


def api_key() -> str | None:
    """Return the API key of the environment, if there is one.

    Raises:
        ConfigError: it is too short, or no header can carry it.
    """
    if API_KEY not in os.environ:
        return None
    key = os.environ[API_KEY].strip()  # of a file that ends with its line, say; headers lose white space, too
    if len(key) < MIN_KEY:
        raise ConfigError(f"{API_KEY}: has {len(key)} characters, expected at least {MIN_KEY}; or unset it")
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"{API_KEY}: has characters that no header carries, expected ASCII; choose another")
    return key


def bound(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address.

    Raises:
        ConfigError: the address is not this machine's, or taken.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        known = error.errno is not None and not isinstance(error, socket.gaierror)
        reason = os.strerror(error.errno or 0).lower() if known else reason_of(error)
        raise ConfigError(
            f"{host}, port {port}: cannot be listened at ({reason}); take another --host or --port"
        ) from error


def address_of(listener: socket.socket) -> str:
    """Return the address of a listening socket as a URL."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve_here(settings: ServerSettings, key: str | None, listener: socket.socket) -> None:
    """Serve in this process."""
    server = Server(config_of(settings, make_app(Service(settings, key))))

    def stop(*_: object) -> None:
        server.should_exit = True

    # The library has a handler of its own while it runs, and raises the signal again when all is done.
    before = signal.signal(signal.SIGTERM, stop)
    try:
        tell_start(settings, listener)
        server.run([listener])
    finally:
        signal.signal(signal.SIGTERM, before)


def serve_by_workers(settings: ServerSettings, listener: socket.socket) -> None:
    """Serve by several processes; one that dies is replaced.

    Raises:
        UnetError: a model's file is unusable, the workers cannot open it, or there is no temporary folder.
    """
    require_temporary_folder("unet-serve with several workers")
    for _, path in settings.models:  # an error of a worker would be a line in the log
        read_model(path)
        if settings.verify:
            check_digest(path)
    with tempfile.TemporaryDirectory(prefix="unet-serve-") as folder:
        os.environ[FOLDER] = folder
        try:
            tell_start(settings, listener)
            config = config_of(settings, partial(app_of_worker, settings))
            workers = Workers(config, [listener])
            workers.run()
        finally:
            del os.environ[FOLDER]
    if workers.failed:
        raise DeviceError("workers: cannot open the models; the log above says why")
    if workers.interrupted:
        raise KeyboardInterrupt


class Workers(Multiprocess):
    """The workers under their parent, which remembers for its exit code whether they failed, or Ctrl-C came."""

    failed = interrupted = False
    _served = False
    _not_before = 0.0

    def handle_int(self) -> None:
        self.interrupted = True
        super().handle_int()

    def keep_subprocess_alive(self) -> None:
        """Replace workers that have ended; the library's own look waits for an answer of those that only start.

        One that cannot open the models is tried again every `RETRY` seconds while another serves: a file may have been
        replaced by a damaged one. If none serves, all end.
        """
        alive = [worker for worker in self.processes if worker.process.is_alive()]
        self._served = self._served or any(worker.is_ready(timeout=0.1) for worker in alive)
        for index, worker in enumerate(self.processes):
            if worker in alive or self.should_exit.is_set():
                continue
            cannot_start = worker.exitcode == STARTUP_FAILURE
            if cannot_start and not (self._served and alive):
                self.failed = True
                self.should_exit.set()
            elif time.monotonic() >= self._not_before:
                self._replace(index, worker)
                self._not_before = time.monotonic() + (RETRY if cannot_start else 0)

    def _replace(self, index: int, worker: Process) -> None:
        worker.kill()  # closes its pipes
        worker.join()
        tell("warning", "worker died; another one starts", worker=worker.pid, exitcode=worker.exitcode)
        self.processes[index] = Process(self.config, self.sockets)
        self.processes[index].start()


def app_of_worker(settings: ServerSettings) -> FastAPI:
    """Make the application of a worker; a model that cannot be opened ends all workers."""
    logging.config.dictConfig(LOG_CONFIG)
    try:
        return make_app(Service(settings, api_key()))
    except UnetError as error:
        tell("error", "models cannot be opened", error=one_line(str(error)))
        sys.exit(STARTUP_FAILURE)


def config_of(settings: ServerSettings, app: Any, log_config: dict[str, Any] | None = LOG_CONFIG) -> Config:
    """Return the configuration of the HTTP library."""
    return Config(
        app,
        factory=settings.workers > 1,
        workers=settings.workers,
        http=TimedProtocol,
        ws="none",
        lifespan="on",
        log_config=log_config,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(settings.seconds) + GRACE,
        timeout_worker_healthcheck=30,
    )


def threads_of(workers: int) -> int | None:
    """Return the CPU threads of each of several workers; None, all cores, for a single one."""
    return None if workers == 1 else max(1, available_threads() // workers)


def tell_start(settings: ServerSettings, listener: socket.socket) -> None:
    """Log where the server listens, and with which models."""
    tell(
        "info",
        f"unet-serve listens at {address_of(listener)}",
        url=address_of(listener),
        models={name: str(path) for name, path in settings.models},
        workers=settings.workers,
        api_key=API_KEY in os.environ,
    )
