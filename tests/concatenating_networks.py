"""Small networks that put channels together, in the ways in which people write and name them."""

import torch
from torch import nn
from torch.nn import functional as F


class _Bottleneck(nn.Module):
    """As in kuangliu/pytorch-cifar's DenseNet: what a layer makes comes before its input."""

    def __init__(self, inner, growth):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inner), nn.Conv2d(inner, 4 * growth, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(4 * growth), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x):
        y = self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))
        return torch.cat([y, x], 1)


class _Transition(nn.Module):
    def __init__(self, inner, outer):
        super().__init__()
        self.bn, self.conv = nn.BatchNorm2d(inner), nn.Conv2d(inner, outer, 1, bias=False)

    def forward(self, x):
        return F.avg_pool2d(self.conv(F.relu(self.bn(x))), 2)


class _Dense(nn.Module):
    def __init__(self, growth=4):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.dense1 = nn.Sequential(*(_Bottleneck(8 + n * growth, growth) for n in range(3)))
        self.trans1 = _Transition(20, 10)
        self.dense2 = nn.Sequential(*(_Bottleneck(10 + n * growth, growth) for n in range(2)))
        self.bn, self.linear = nn.BatchNorm2d(18), nn.Linear(18, 10)

    def forward(self, x):
        x = self.dense2(self.trans1(self.dense1(self.conv1(x))))
        return self.linear(F.relu(self.bn(x)).mean((2, 3)))


class _Grown(nn.Module):
    """As in "Dive into Deep Learning": layers of one convolution, behind their input."""

    def __init__(self, inner, growth, layers):
        super().__init__()
        made = [
            _unit(inner + n * growth, growth, nn.Conv2d(inner + n * growth, growth, 3, padding=1))
            for n in range(layers)
        ]
        self.net = nn.Sequential(*made)

    def forward(self, x):
        for layer in self.net:
            x = torch.cat([x, layer(x)], 1)
        return x


def _unit(inner, outer, convolution):
    return nn.Sequential(nn.BatchNorm2d(inner), nn.ReLU(), convolution)


class Fire(nn.Module):
    """As in torchvision's SqueezeNet."""

    def __init__(self, inner, squeezed, outer, norm=nn.Identity):
        super().__init__()
        self.squeeze = nn.Conv2d(inner, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, outer // 2, 1)
        self.expand3x3 = nn.Conv2d(squeezed, outer // 2, 3, padding=1)
        self.bn1, self.bn2, self.bn3 = norm(squeezed), norm(outer // 2), norm(outer // 2)

    def forward(self, x):
        x = F.relu(self.bn1(self.squeeze(x)))
        return torch.cat([F.relu(self.bn2(self.expand1x1(x))), F.relu(self.bn3(self.expand3x3(x)))], 1)


class _Fires(nn.Module):
    """Modules with pools in between that leave no number, and a linear head."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.fire2, self.fire3 = Fire(8, 4, 16, nn.BatchNorm2d), Fire(16, 4, 16, nn.BatchNorm2d)
        self.fire4, self.fc = Fire(16, 8, 32, nn.BatchNorm2d), nn.Linear(32, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = self.fire4(F.max_pool2d(self.fire3(self.fire2(x)), 2))
        return self.fc(x.mean((2, 3)))


def dense():
    return _Dense()


def grown():
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 8, 7, 2, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1)),
        _Grown(8, 4, 2), nn.Sequential(*_unit(16, 8, nn.Conv2d(16, 8, 1)), nn.AvgPool2d(2, 2)), _Grown(8, 4, 2),
        nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip


def squeezenet():
    network = nn.Module()
    network.features = nn.Sequential(
        nn.Conv2d(1, 8, 3, 2), nn.ReLU(), nn.MaxPool2d(3, 2), Fire(8, 4, 16), Fire(16, 4, 16), nn.MaxPool2d(3, 2),
        Fire(16, 8, 32),
    )  # fmt: skip
    network.classifier = nn.Sequential(nn.Dropout(), nn.Conv2d(32, 10, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    network.forward = lambda x: network.classifier(network.features(x)).flatten(1)
    return network


def fires():
    return _Fires()
