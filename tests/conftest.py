"""Fixtures that several packages' tests share, and how a test run is divided among its workers."""

import gc
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import pytest
from folders import write_pair

REAL_DATA = Path(__file__).parents[2] / "shared" / "data"
RUNTIME = Path(__file__).parent / "runtime"
LONGEST = ("readme", "timing", "tests/export/winograd/test_transform.py", "tests/export/test_target_cpu.py")
"""Groups of tests that take longest, so that two workers start with them."""

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A script's background job ignores Ctrl-C, and so would every process that a test starts and interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)

WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")

if WORKER and hasattr(os, "sched_setaffinity"):
    # One core each, and so one thread in every library and in every process that a test starts.
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(WORKER.removeprefix("gw")) % len(cores)]})


def pytest_addoption(parser):
    group = parser.getgroup("campaign", "damaged inputs by the thousand, see tests/support/campaigns.py")
    group.addoption("--campaign-seconds", type=float, default=120.0, help="time for all areas but the soak")
    group.addoption("--soak-seconds", type=float, default=20.0, help="time for the soak of threads")
    group.addoption("--campaign-seed", type=int, default=1, help="seed of all cases")
    group.addoption("--campaign-case", type=int, help="number of the only case to try, with the seed of its run")
    group.addoption("--campaign-folder", help="folder for the counts of each area, and a table of all of them")
    parser.addoption(
        "--whole-corpus", action="store_true", help="every kind of TIFF, see test_corpus.py: takes minutes"
    )


@pytest.hookimpl(tryfirst=True)  # pytest-xdist's own hook reads the groups
def pytest_collection_modifyitems(items):
    """Divide the tests among the workers: each file is a group, which one worker runs; longer ones come first.

    Groups of their own are `readme`, which takes longest, and `timing`: its tests never run beside one another. The
    tests of the runtime, the quickest, come last and fill what is left.
    """
    if not WORKER:
        return
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    for item in items:
        if item.get_closest_marker("timing"):
            item.add_marker(pytest.mark.xdist_group("timing"))
        elif not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))
    groups = {item: item.get_closest_marker("xdist_group").args[0] for item in items}
    items.sort(key=lambda item: (groups[item] not in LONGEST, item.path not in slow, RUNTIME in item.path.parents))


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
def shared_exports(request, tmp_path_factory):
    """Let PyTorch export each network once, for this test run and the next ones; see tests/support/shared.py."""
    if "torch" not in sys.modules:
        yield  # only tests that do without PyTorch were asked for
        return
    import torch
    from shared import SharedExports, shared_folder

    cache = getattr(request.config, "cache", None)  # none with -p no:cacheprovider
    folder = shared_folder(tmp_path_factory) if cache is None else cache.mkdir("exports")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", SharedExports(folder))
        yield


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory):
    """A stand-in for CUDA's libraries, or skip; see tests/support/stand_in.py."""
    from stand_in import StandIn, UnbuiltError, build

    try:
        return StandIn(build(tmp_path_factory.mktemp("stand_in") / "libraries"))
    except UnbuiltError as problem:
        pytest.skip(f"no stand-in for CUDA: {problem}")


@pytest.fixture
def plain_curves(request, monkeypatch):
    """Drawing the curves takes ten times as long as an epoch of a test: only `drawn_curves` does it."""
    if "drawn_curves" not in request.fixturenames:
        from trained import write_no_curves

        monkeypatch.setattr("unet_core.training.run_directory.save_curves", write_no_curves)


@pytest.fixture
def drawn_curves():
    """For tests that look at the curves of a training."""


@pytest.fixture(scope="session")
def trained(tmp_path_factory, shared_exports):
    """A trained network, for all tests that need honest masks; nobody may change its files."""
    from shared import made_once, shared_folder
    from trained import load_trained, train_in

    return load_trained(made_once(shared_folder(tmp_path_factory) / "trained", train_in))
