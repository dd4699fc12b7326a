"""Ray: the library where it is installed, and a connection to a cluster."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from runtime.errors import ConfigError

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


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Connect to a cluster, and give the module `ray`; a connection that is there already is used and left open.

    Without an address it is the cluster that the variable RAY_ADDRESS names, or a new one of this machine, which ends
    with the block.

    Raises:
        ConfigError: Ray is not installed, or no cluster answers.
    """
    ray = ray_library()
    if ray.is_initialized():
        yield ray
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    own = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except Exception as error:  # ConnectionError, ValueError, RuntimeError
        reason = " ".join(str(error).split()).partition(". ")[0]
        raise ConfigError(f"--ray-address {address}: no Ray cluster answers ({reason})") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def capacity(ray: Any, cpus: float, gpus: float) -> int:
    """Return how many workers of so many CPUs and GPUs the machines of a cluster hold."""
    found = 0
    for node in ray.nodes():
        if node["Alive"]:
            room = [node["Resources"].get("CPU", 0) // cpus]
            room += [node["Resources"].get("GPU", 0) / gpus] if gpus else []
            found += int(min(room))
    return found
