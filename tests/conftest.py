"""Fixtures that several packages' tests share: small data sets on disk, and the two real ones."""

import gc
import multiprocessing
from pathlib import Path

import pytest
from folders import write_pair

REAL_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    """No test reads what another one, or the user, has decoded."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def no_process_left():
    """Python would wait at its end for a process that loads images and was never told to go."""
    yield
    if multiprocessing.active_children():
        gc.collect()  # an error's traceback may have held the loader
    for process in multiprocessing.active_children():
        process.join(5)
        left = process.is_alive()
        if left:
            process.kill()
        assert not left, f"{process} was left running"


@pytest.fixture
def data(tmp_path):
    """Six training and three validation pairs of 48x32 in Carvana's layout."""
    folder = tmp_path / "data"
    for index in range(6):
        write_pair(folder, "train", f"car{index}", seed=index)
    for index in range(3):
        write_pair(folder, "val", f"val{index}", seed=100 + index)
    return folder


def real_data(name):
    """The folder of a real data set, or skip."""
    folder = REAL_DATA / name
    if not folder.is_dir():
        pytest.skip(f"{name}: the real data set is not at ../shared/data/{name} beside this checkout")
    return folder


@pytest.fixture(scope="session")
def brain():
    return real_data("brain")


@pytest.fixture(scope="session")
def camvid():
    return real_data("camvid-cars")


@pytest.fixture
def network():
    """A thin network; PyTorch is imported here and not above, since the runtime's tests do without."""
    from networks import make_network

    return make_network()


@pytest.fixture
def card(network):
    from networks import make_card

    return make_card(network)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    from trained import train_in

    return train_in(tmp_path_factory.mktemp("trained"))
