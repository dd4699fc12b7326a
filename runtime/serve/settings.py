"""ServerSettings: everything that a server is told when it starts."""

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from runtime.errors import ConfigError
from runtime.image_files.limits import FILE_BYTES, MEMORY, Limits
from runtime.support.validation import FieldChecks

API_KEY = "UNET_SERVE_API_KEY"
"""Environment variable of the API key; command lines are visible to other users."""

MIN_KEY = 8
"""Least number of characters of an API key."""

HEADER_SECONDS = 10
"""Seconds that a client may take to send the header of a request."""

STALL_SECONDS = 30
"""Seconds in which a client has to read some of its answer."""


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """The settings of a server.

    Attributes:
        models: (name, path) of each model; the first one answers requests that name none.
        host, port: address to listen on.
        allowed_hosts: names by which clients may call the server, beside localhost; if there are none, a server that
            listens on this machine alone may be called localhost, and all others by any name.
        workers: number of processes, each with all models.
        device, threads, verify: as of `Predictor`; `threads` are those of one worker.
        max_batch, max_delay_ms: as of `Batching`.
        queue: requests that one worker takes at once; further ones are answered 429.
        max_bytes: bytes of a request's body.
        max_pixels: pixels of an image, height times width.
        max_network_pixels: pixels that the network sees at once.
        seconds: time for one request.
        look_seconds: time between two looks at the models' files.

    Raises:
        ConfigError: a number is out of its bounds, or a name is none.
    """

    models: tuple[tuple[str, Path], ...]
    host: str = "127.0.0.1"
    allowed_hosts: tuple[str, ...] = ()
    port: int = 8000
    workers: int = 1
    device: str = "auto"
    threads: int | None = None
    verify: bool = True
    max_batch: int | None = None
    max_delay_ms: float = 0.0
    queue: int = 64
    max_bytes: int = 64 * 2**20
    max_pixels: int = 25_000_000
    max_network_pixels: int = 4 * 2**20
    seconds: float = 30.0
    look_seconds: float = 1.0

    def __post_init__(self) -> None:
        check = FieldChecks(ConfigError)
        check.integer("port", self.port, 0, 65_535)
        check.integer("workers", self.workers, 1, 1_024)
        check.integer("queue", self.queue, 1, 100_000)
        check.integer("max_bytes", self.max_bytes, 1, FILE_BYTES)
        check.integer("max_pixels", self.max_pixels, 1)
        check.integer("max_network_pixels", self.max_network_pixels, 1)
        check.number("seconds", self.seconds, 0.01, 86_400, "seconds")
        for name in self.allowed_hosts:
            if not name or name_of(name) != name.lower():
                raise ConfigError(f"--allow-host {name}: expected a name or an address, without a port")

    def allows_host(self, header: str) -> bool:
        """Return True unless the header Host has a name by which the server may not be called.

        A page in this machine's browser can give its own name this machine's address (DNS rebinding), and could then
        read answers as if they were its own server's.
        """
        if not header or not (self.allowed_hosts or is_local(self.host)):  # browsers always send the header
            return True
        name = name_of(header)
        return is_local(name) or name in {name_of(allowed) for allowed in self.allowed_hosts}

    def limits(self, pixels: int | None = None) -> Limits:
        """Return the limits of a request's image; `pixels` are fewer where the network sees all of them."""
        return RequestLimits(
            pixels=self.max_pixels if pixels is None else min(pixels, self.max_pixels),
            file_bytes=self.max_bytes,
            memory=MEMORY,
            native=pixels is not None and pixels < self.max_pixels,
        )


def name_of(host: str) -> str:
    """Return the name or address in a header Host, in small letters; "" if there is none."""
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        try:
            return (urlsplit(f"//{host}").hostname or "").removesuffix(".")
        except ValueError:
            return ""
    return host.lower()


def is_local(name: str) -> bool:
    """Return True for localhost, names that end with it, and the addresses by which a machine reaches itself."""
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return f".{name}".endswith(".localhost")
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


@dataclass(frozen=True, kw_only=True)
class RequestLimits(Limits):
    """The limits of an image in a request, whose sender can change the image and not the limits.

    `native` is True if the network sees all pixels of the image.
    """

    native: bool = False

    def advice(self, limit: str, needed: int | None) -> str:  # noqa: ARG002
        """Return the end of a message about an image that exceeds a limit."""
        return "make it smaller, or give size or tile" if self.native and limit == "pixels" else "make it smaller"
