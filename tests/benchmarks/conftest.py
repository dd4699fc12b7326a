"""A thin exported model with its checkpoint, another one's, and three images."""

import pytest
from folders import write_pair


@pytest.fixture(scope="session", autouse=True)
def _shared_exports(shared_exports):
    pass


@pytest.fixture(scope="session")
def thin(tmp_path_factory):
    """A folder: model.onnx from model.pth, other.pth, and val_images/v0.jpg to v2.jpg of 60 to 62 x 40 pixels."""
    from networks import make_card, make_network

    from export import export_onnx
    from unet_core.checkpoint import save_checkpoint

    folder = tmp_path_factory.mktemp("thin")
    for name, seed in (("model", 0), ("other", 1)):
        network = make_network(seed)
        save_checkpoint(folder / f"{name}.pth", network.state_dict(), make_card(network))
    export_onnx(folder / "model.pth")
    for index in range(3):
        write_pair(folder, "val", f"v{index}", size=(40, 60 + index), seed=index)
    return folder


@pytest.fixture(autouse=True)
def _single_calls(monkeypatch):
    """A round is one call, however short, so that nothing here waits for rounds to fill."""
    monkeypatch.setattr("benchmarks.measuring.rounds.ROUND_SECONDS", 0.0)
