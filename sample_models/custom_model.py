"""A user's own network: no lsa import, functional activations, one factory.

    lsa audit sample_models/custom_cnn.pth --arch sample_models/custom_model.py:build \
        --normalize mnist --data npz:sample_models/mnist.npz
"""

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.conv2(F.relu(self.conv1(x))))


class CustomCNN(nn.Module):
    """A small residual network for 1 x 28 x 28 images."""

    def __init__(self, width: int = 12, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 5, stride=2, padding=2)
        self.block1 = Block(width)
        self.block2 = Block(width)
        self.head = nn.Linear(width * 49, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        x = self.block2(F.max_pool2d(self.block1(x), 2))
        return self.head(x.flatten(1))


def build(width: int = 12, num_classes: int = 10) -> nn.Module:
    return CustomCNN(width, num_classes)
