"""A network that is not this library's, as the code of its author, and files of its weights."""

import torch

CODE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width=6, classes=1, ends=False, levels=1):
        super().__init__()
        self.encoder = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.decoder = nn.ConvTranspose2d(width, width, 2, stride=2)
        self.heads = nn.ModuleList(nn.Conv2d(width, classes, 1) for _ in range(levels))
        self.ends = ends

    def forward(self, x):
        x = self.decoder(self.encoder(x).tanh()).tanh()
        answers = [head(x) for head in self.heads]
        if len(answers) > 1:
            return [answers[0], *(answer[:, :, ::2, ::2] for answer in answers[1:])]
        return answers[0].sigmoid() if self.ends else answers[0]
"""
"""A network of stride 2: `levels` above 1 give outputs of several sizes, and with `ends` it ends in a sigmoid."""


def write_author(folder, seed=0, **arguments):
    """Write net.py into a folder, and return the network with random weights that answers both classes."""
    (folder / "net.py").write_text(CODE)
    names = {}
    exec(CODE, names)
    torch.manual_seed(seed)
    network = names["Net"](**arguments).eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.uniform_(-1, 1)
    return network
