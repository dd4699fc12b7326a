"""Ray: the library where it is installed, and a connection to a cluster."""

import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any

from runtime.errors import ConfigError
from runtime.support.cpu_count import available_threads
from runtime.support.files import reason_of

QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
"""Environment variables without which Ray sends statistics of its use over the network, and warns about its future."""


def ray_library(name: str = "ray") -> Any:
    """Return the module `ray`, or another one of its packages.

    Raises:
        ConfigError: it is not installed.
    """
    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"Ray: {str(error.name).partition('.')[0]} is not installed; install unet-deploy with its extra [ray]"
        ) from error


CONNECTING = 10
"""Seconds that a machine has to accept a connection."""

LOCAL = "local"
"""The address of a new cluster of this machine alone."""


def address_of(asked: str | None) -> str:
    """Return the address of the cluster that was asked for: by default what RAY_ADDRESS names, else `LOCAL`."""
    return asked or os.environ.get("RAY_ADDRESS") or LOCAL


def require_listener(address: str) -> None:
    """Refuse an address at which nobody listens, for which Ray would wait for minutes.

    Raises:
        ConfigError: it cannot be connected to.
    """
    found = address
    if address == "auto":
        with suppress(ImportError, AttributeError, ConnectionError):  # a private function; without a cluster Ray tells
            found = ray_library("ray._private.services").canonicalize_bootstrap_address(address)
    host, _, port = found.rpartition("://")[2].rpartition(":")
    if not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECTING).close()
    except OSError as error:
        reason = f"{reason_of(error)} at {found}"
        raise ConfigError(f"--ray-address {address}: no Ray cluster answers ({reason})") from error


def keep_stdout_clean() -> None:
    """Let Ray print to stderr what it has to say of machines that died: stdout has the command's own lines."""
    with suppress(ImportError, AttributeError):  # a private function of the versions that were seen
        worker = ray_library("ray._private.worker")
        shown = worker.print_to_stdstream
        worker.print_to_stdstream = lambda data, **named: shown(data | {"is_err": True}, **named)


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Connect to a cluster, and give the module `ray`; a connection that is there already is used and left open.

    A cluster at `LOCAL` has the CPUs that this process may use, and ends with the block. For the main thread alone:
    SIGTERM is a KeyboardInterrupt meanwhile.

    Raises:
        ConfigError: Ray is not installed, or no cluster answers.
    """
    ray = ray_library()
    if ray.is_initialized():
        yield ray
        return
    if address != LOCAL:
        require_listener(address)
    own = {"include_dashboard": False, "num_cpus": available_threads()} if address == LOCAL else {}
    try:
        keep_stdout_clean()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except Exception as error:  # ConnectionError, ValueError, RuntimeError
        reason = " ".join(str(error).split()).partition(". ")[0]
        raise ConfigError(f"--ray-address {address}: no Ray cluster answers ({reason})") from error
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray's own handler ends in an abort
    try:
        yield ray
    finally:
        ray.shutdown()
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def capacity(ray: Any, cpus: float, gpus: float) -> int:
    """Return how many workers of so many CPUs and GPUs the machines of a cluster hold."""
    found = 0
    for node in ray.nodes():
        if node["Alive"]:
            room = [node["Resources"].get("CPU", 0) // cpus]
            room += [node["Resources"].get("GPU", 0) / gpus] if gpus else []
            found += int(min(room))
    return found
