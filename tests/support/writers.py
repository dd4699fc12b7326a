"""Writers that never end, to be killed at any moment."""

import itertools
from unittest.mock import patch


def write_files(folder, names):
    """Replace files again and again by a number, over and over in each of them."""
    from runtime.support.files import write_bytes

    for number in itertools.count():
        for name in names:
            write_bytes(folder / name, number.to_bytes(8, "little") * (1 + number * 997 % 20_000))


def is_whole(path):
    """Return True if `write_files` wrote all of a file."""
    content = path.read_bytes()
    number = int.from_bytes(content[:8], "little")
    return content == number.to_bytes(8, "little") * (1 + number * 997 % 20_000)


def cache_records(pairs, decoder, cache):
    """Decode pairs into a cache, flushed after each, again and again in another order."""
    from unet_core.data.cache import check_and_cache
    from unet_core.data.records import Records

    with patch("unet_core.data.cache.SAVE_SECONDS", 0):
        for turn in itertools.count():
            turned = pairs[turn % len(pairs) :] + pairs[: turn % len(pairs)]
            check_and_cache((Records(turned, decoder),), cache, lambda _: None, lambda _: None)
