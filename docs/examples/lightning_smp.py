"""Train a network of segmentation_models_pytorch with Lightning: python lightning_smp.py -> last.ckpt

Needs `pip install lightning segmentation-models-pytorch`. The data are squares on noise: put your own in their place.
"""

import lightning
import segmentation_models_pytorch as smp
import torch
from torch.utils.data import DataLoader, Dataset

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of values in 0..1. `unet-export --mean --std` gets the same numbers: the file normalises by itself."""


class Squares(Dataset):
    """Pictures of a bright square: float32 [3, 64, 64], normalised, and the mask [1, 64, 64] of 0 and 1."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        picture = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(index)) / 2
        mask = torch.zeros(1, 64, 64)
        mask[:, 16 + index : 40 + index, 8:40] = 1
        values = torch.where(mask > 0, picture + 0.5, picture)
        return (values - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None], mask


class Segmenter(lightning.LightningModule):
    """The network lies under `network`, so its weights are `network.…` in the checkpoint; any name will do."""

    def __init__(self, lr: float = 1e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr = lr
        self.network = smp.Unet("resnet18", encoder_weights=None, classes=1)  # logits: no activation
        self.loss = smp.losses.DiceLoss("binary")

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> torch.Tensor:
        pictures, masks = batch
        return self.loss(self.network(pictures), masks)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), self.lr)


if __name__ == "__main__":
    trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(Segmenter(), DataLoader(Squares(), batch_size=4))
    trainer.save_checkpoint("last.ckpt")
