"""Architectures of checkpoints that other projects published, written from their descriptions; data for them."""

import itertools
import pickle
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F


def small_cnn():
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip


class LeNet5(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1)
        self.linear1, self.linear2 = nn.Linear(3136, 200), nn.Linear(200, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.linear2(F.relu(self.linear1(x.flatten(1))))


class Burn(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 16, 3), nn.Conv2d(16, 24, 3)
        self.norm1, self.fc1 = nn.BatchNorm2d(24), nn.Linear(24 * 22 * 22, 32)
        self.fc2, self.norm2 = nn.Linear(32, 10), nn.BatchNorm1d(10)

    def forward(self, x):
        for conv in (self.conv1, self.conv2, self.conv3):
            x = F.relu(conv(x))
        x = F.relu(self.fc1(self.norm1(x).flatten(1)))
        return F.log_softmax(self.norm2(self.fc2(x)), 1)


class _Shortcut(nn.Module):
    def __init__(self, inner, outer, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer)
        self.conv2, self.bn2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False), nn.BatchNorm2d(outer)
        self.stride, self.pad = stride, (outer - inner) // 2

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.pad:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(x + y)


class ResNet20(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        widths = (16, 16, 32, 64)
        for stage in (1, 2, 3):
            first = _Shortcut(widths[stage - 1], widths[stage], 1 if stage == 1 else 2)
            rest = [_Shortcut(widths[stage], widths[stage], 1) for _ in range(2)]
            setattr(self, f"layer{stage}", nn.Sequential(first, *rest))
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(x.mean((2, 3)))


def cifar10_test(root):
    with (Path(root) / "cifar-10-batches-py" / "test_batch").open("rb") as file:
        batch = pickle.load(file, encoding="latin1")
    return torch.from_numpy(batch["data"].reshape(-1, 3, 32, 32)), torch.tensor(batch["labels"])


class _Block(nn.Module):
    def __init__(self, inner, outer, stride):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(inner, outer, 3, stride, 1), nn.Conv2d(outer, outer, 3, 1, 1)
        shortcut = [nn.Conv2d(inner, outer, 1, stride)] if stride > 1 else []
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, x):
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))


class ResNet2b(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 2, 1)
        self.layer1 = nn.Sequential(_Block(8, 16, 2), _Block(16, 16, 1))
        self.linear1, self.linear2 = nn.Linear(1024, 100), nn.Linear(100, 10)

    def forward(self, x):
        x = self.layer1(F.relu(self.conv1(x)))
        return self.linear2(F.relu(self.linear1(x.flatten(1))))


class PickledCNN(nn.Module):
    """The class that HandWritten-Digit/model.pth was pickled from."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1)
        self.conv3, self.pool = nn.Conv2d(64, 128, 3, padding=1), nn.MaxPool2d(2)
        self.fc1, self.fc2 = nn.Linear(1152, 128), nn.Linear(128, 256)
        self.fc3, self.fc4 = nn.Linear(256, 512), nn.Linear(512, 10)

    def forward(self, x):
        for conv in (self.conv1, self.conv2, self.conv3):
            x = self.pool(F.relu(conv(x)))
        x = x.flatten(1)
        for linear in (self.fc1, self.fc2, self.fc3):
            x = F.relu(linear(x))
        return self.fc4(x)


def lightning():
    return nn.Sequential(
        nn.Conv2d(1, 8, 4, 2, bias=False), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, bias=False), nn.ReLU(),
        nn.Conv2d(8, 8, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip


class ScriptedCNN(nn.Module):
    """The class that HandWritten-Digit/model_scripted.pt was scripted from."""

    def __init__(self):
        super().__init__()
        widths = (1, 32, 64, 128)
        stages = [
            (nn.Conv2d(inner, outer, 3, padding=1), nn.BatchNorm2d(outer), nn.ReLU(), nn.MaxPool2d(2))
            for inner, outer in itertools.pairwise(widths)
        ]
        self.features = nn.Sequential(*(layer for stage in stages for layer in stage))
        self.classifier = nn.Sequential(
            nn.Linear(1152, 512), nn.ReLU(), nn.Dropout(), nn.Linear(512, 256), nn.ReLU(), nn.Dropout(),
            nn.Linear(256, 10),
        )  # fmt: skip

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))
