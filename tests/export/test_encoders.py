"""Networks with encoders: exported from their checkpoint alone, with proof against the module itself."""

import numpy as np
import pytest
import torch
from encoders import ENCODER
from PIL import Image

from export.exporter import export_onnx
from export.verify import check_file
from runtime.card import InputSpec, ModelCard, OutputSpec, SmpConfig
from runtime.predictor import Predictor
from unet_core.checkpoint import save_checkpoint, weights_sha256
from unet_core.smp_networks import make_network

NETWORKS = {"Unet": {"encoder_depth": 4, "decoder_channels": (8, 8, 8, 4)}, "FPN": {"decoder_pyramid_channels": 16}}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_checkpoint_is_exported_with_proof_against_its_network(name, tmp_path):
    architecture = SmpConfig(name=name, encoder=ENCODER, options=NETWORKS[name])
    torch.manual_seed(2)
    network = make_network(architecture).eval()
    path = tmp_path / "model.pth"
    spec = InputSpec(
        size=(64, 96),
        stride=32,
        mean=(0.5,) * 3,
        std=(0.2,) * 3,
        padded=name == "Unet",
        min_size=(64, 64) if name == "FPN" else (1, 1),
    )
    digest = weights_sha256(network.state_dict())
    card = ModelCard(
        name="net", producer={}, architecture=architecture, input=spec, output=OutputSpec(), weights_sha256=digest
    )
    save_checkpoint(path, network.state_dict(), card)
    report = export_onnx(path, tmp_path / "model.onnx")
    assert report.card.architecture == architecture
    assert report.card.proof.reference == "module"
    check_file(tmp_path / "model.onnx", checkpoint=path)  # without --network
    picture = np.random.default_rng(1).integers(0, 256, (64, 96, 3)).astype(np.uint8)
    with Predictor(tmp_path / "model.onnx", "cpu") as predictor, torch.inference_mode():
        found = predictor.predict(Image.fromarray(picture)).probability[0]
        values = (torch.from_numpy(picture).permute(2, 0, 1)[None] / 255 - 0.5) / 0.2
        np.testing.assert_allclose(found, network(values).sigmoid()[0, 0], atol=1e-4)
