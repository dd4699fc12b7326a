"""Networks of segmentation-models-pytorch that are quick: an encoder that timm has for tests, and a thin decoder."""

from unet_core.config import TrainConfig

ENCODER = "tu-test_resnet"
OPTIONS = ("encoder_depth=4", "decoder_channels=[8, 8, 8, 4]")


def encoder_config(data, out, **settings):
    """Settings of two epochs of two steps."""
    usual = {
        "network": "smp.Unet",
        "encoder": ENCODER,
        "encoder_weights": "none",
        "network_arg": OPTIONS,
        "height": 64,
        "width": 96,
        "batch_size": 4,
        "epochs": 2,
        "lr": 1e-3,
        "workers": 0,
        "cache_gb": 0.0,
        "tensorboard": False,
        "device": "cpu",
    }
    return TrainConfig(**{"data": str(data), "out": str(out), **usual, **settings})
