"""A card that says a fraction of an image's own size, as milesial's programs show images to the network."""

import cv2
import numpy as np
import torch
from click.testing import CliRunner
from families import Milesial, randomised

from export.cli import main
from runtime.model_file.golden import synthetic_image
from runtime.predictor import Predictor


def test_milesials_scale_of_one_half(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network = randomised(Milesial(widths=(4, 6), classes=1))
    torch.save(network.state_dict(), "weights.pth")
    export = ["weights.pth", "--size", "48x32"]
    advice = "at half of their own size, as --fit native --scale 0.5 does"
    assert advice in " ".join(CliRunner().invoke(main, export).stderr.split())
    done = CliRunner().invoke(main, [*export, "--fit", "native", "--scale", "0.5", "--mean", "0,0,0", "--std", "1,1,1"])
    assert done.exit_code == 0 and advice not in " ".join(done.stderr.split()), done.output
    predictor = Predictor("weights.onnx", "cpu")
    assert (predictor.card.input.fit, predictor.card.input.scale) == ("native", 0.5)
    for height, width in ((64, 96), (48, 72)):
        image = synthetic_image(height, width, 3, seed=1)
        half = cv2.resize(image, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
        planes = torch.from_numpy(half).permute(2, 0, 1)[None].float() / 255
        with torch.inference_mode():
            answer = network(planes).sigmoid()[0, 0].numpy()
        expected = cv2.resize(answer, (width, height), interpolation=cv2.INTER_LINEAR)
        assert np.abs(predictor.predict(image).probability[0] - expected).max() < 1e-5
