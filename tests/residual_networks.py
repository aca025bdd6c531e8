"""Small residual networks in the ways in which people write and name them."""

import torch
from torch import nn
from torch.nn import functional as F


class _Basic(nn.Module):
    """As in kuangliu/pytorch-cifar."""

    def __init__(self, inner, outer, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer)
        self.conv2, self.bn2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False), nn.BatchNorm2d(outer)
        self.shortcut = nn.Sequential()
        if stride != 1 or inner != outer:
            self.shortcut = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x):
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.shortcut(x))


class _Declared(nn.Module):
    """As in "Dive into Deep Learning": all convolutions, among them the shortcut, before the norms."""

    def __init__(self, inner, outer, stride):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(inner, outer, 3, stride, 1), nn.Conv2d(outer, outer, 3, 1, 1)
        self.conv3 = nn.Conv2d(inner, outer, 1, stride) if stride > 1 else None
        self.bn1, self.bn2 = nn.BatchNorm2d(outer), nn.BatchNorm2d(outer)

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.conv3 is None else self.conv3(x)))


class _Wide(nn.Module):
    """As in xternalz/WideResNet-pytorch: norm and activation first, and a shortcut behind them where the width changes."""

    def __init__(self, inner, outer, stride):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inner), nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(outer), nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.convShortcut = None if inner == outer else nn.Conv2d(inner, outer, 1, stride, bias=False)

    def forward(self, x):
        out = F.relu(self.bn1(x))
        side = x if self.convShortcut is None else self.convShortcut(out)
        return side + self.conv2(F.relu(self.bn2(self.conv1(out))))


class _Late(nn.Module):
    """As in meliketoy/wide-resnet.pytorch: the stride is that of the second convolution, and the shortcut takes the input."""

    def __init__(self, inner, outer, stride):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inner), nn.Conv2d(inner, outer, 3, 1, 1)
        self.bn2, self.conv2 = nn.BatchNorm2d(outer), nn.Conv2d(outer, outer, 3, stride, 1)
        self.shortcut = nn.Sequential()
        if stride != 1 or inner != outer:
            self.shortcut = nn.Sequential(nn.Conv2d(inner, outer, 1, stride))

    def forward(self, x):
        return self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x)))))) + self.shortcut(x)


class _Nested(nn.Module):
    """As in weiaicunzai/pytorch-cifar100."""

    def __init__(self, inner, outer, stride):
        super().__init__()
        self.residual_function = nn.Sequential(
            nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU(),
            nn.Conv2d(outer, outer, 3, 1, 1, bias=False), nn.BatchNorm2d(outer),
        )  # fmt: skip
        self.shortcut = nn.Sequential()
        if stride != 1 or inner != outer:
            self.shortcut = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x):
        return F.relu(self.residual_function(x) + self.shortcut(x))


class _Stages(nn.Module):
    def __init__(self, stem, blocks, end, head):
        super().__init__()
        self.conv1, self.end = stem, end
        self.layer1, self.layer2 = nn.Sequential(*blocks[:2]), nn.Sequential(*blocks[2:])
        self.linear = head

    def forward(self, x):
        x = self.end(self.layer2(self.layer1(self.conv1(x))))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


def _two_stages(block, end=nn.Identity):
    stem = nn.Conv2d(1, 8, 3, 1, 1, bias=False)
    if block not in (_Wide, _Late):
        stem = nn.Sequential(stem, nn.BatchNorm2d(8), nn.ReLU())
    return _Stages(stem, [block(8, 8, 1), block(8, 8, 1), block(8, 16, 2)], end(), nn.Linear(16, 10))


def basic():
    return _two_stages(_Basic)


def declared():
    return _two_stages(_Declared)


def wide():
    return _two_stages(_Wide, lambda: nn.Sequential(nn.BatchNorm2d(16), nn.ReLU()))


def late():
    return _two_stages(_Late, lambda: nn.Sequential(nn.BatchNorm2d(16), nn.ReLU()))


def nested():
    return _two_stages(_Nested)


def imagenet_bottleneck():
    from torchvision.models.resnet import Bottleneck, ResNet

    network = ResNet(Bottleneck, [1, 1, 1, 1], num_classes=10)
    network.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    return network


def _layers(inner, outer, pools=False):
    pool = [nn.MaxPool2d(2)] if pools else []
    return nn.Sequential(nn.Conv2d(inner, outer, 3, padding=1), nn.BatchNorm2d(outer), nn.ReLU(), *pool)


class ResNet9(nn.Module):
    """Of many courses: activations inside of the blocks, none behind the sum."""

    def __init__(self, width=8):
        super().__init__()
        self.conv1, self.conv2 = _layers(1, width), _layers(width, 2 * width, True)
        self.res1 = nn.Sequential(_layers(2 * width, 2 * width), _layers(2 * width, 2 * width))
        self.conv3, self.conv4 = _layers(2 * width, 4 * width, True), _layers(4 * width, 8 * width, True)
        self.res2 = nn.Sequential(_layers(8 * width, 8 * width), _layers(8 * width, 8 * width))
        self.classifier = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8 * width, 10))

    def forward(self, x):
        x = self.conv2(self.conv1(x))
        x = self.conv4(self.conv3(x + self.res1(x)))
        return self.classifier(x + self.res2(x))


def randomize(network):
    """Running statistics of no effect would hide a norm at a wrong place."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return network.eval()


class _Inverted(nn.Module):
    """As in torchvision's MobileNetV2: a shortcut only where nothing changes."""

    def __init__(self, inner, outer, stride):
        super().__init__()
        wide, self.adds = 2 * inner, stride == 1 and inner == outer
        self.conv = nn.Sequential(
            nn.Conv2d(inner, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU(),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU(),
            nn.Conv2d(wide, outer, 1, bias=False), nn.BatchNorm2d(outer),
        )  # fmt: skip

    def forward(self, x):
        return x + self.conv(x) if self.adds else self.conv(x)


class _Separable(nn.Module):
    """As in kuangliu/pytorch-cifar's MobileNet: a depthwise convolution and one of 1 x 1, without a shortcut."""

    def __init__(self, inner, outer, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, outer, 1, bias=False), nn.BatchNorm2d(outer)

    def forward(self, x):
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


def _mobile(block):
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Sequential(block(8, 12, 2), block(12, 12, 1), block(12, 24, 2), block(24, 24, 1)),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10),
    )  # fmt: skip


def inverted():
    return _mobile(_Inverted)


def separable():
    return _mobile(_Separable)


class _Squeezed(_Basic):
    """As in kuangliu/pytorch-cifar's SENet: two convolutions of 1 x 1 in the block itself."""

    def __init__(self, inner, outer, stride):
        super().__init__(inner, outer, stride)
        self.fc1, self.fc2 = nn.Conv2d(outer, outer // 4, 1), nn.Conv2d(outer // 4, outer, 1)

    def factors(self, y):
        return torch.sigmoid(self.fc2(F.relu(self.fc1(y.mean((2, 3), keepdim=True)))))

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(self.factors(y) * y + self.shortcut(x))


class _Excited(_Squeezed):
    """As in moskomule/senet.pytorch: two linear layers without a bias in a module of their own."""

    def __init__(self, inner, outer, stride):
        super().__init__(inner, outer, stride)
        del self.fc1, self.fc2
        self.se = nn.Module()
        self.se.fc = nn.Sequential(
            nn.Linear(outer, outer // 4, bias=False), nn.ReLU(), nn.Linear(outer // 4, outer, bias=False), nn.Sigmoid()
        )

    def factors(self, y):
        return self.se.fc(y.mean((2, 3)))[:, :, None, None]


def squeezed():
    return _mobile(_Squeezed)


def excited():
    return _mobile(_Excited)
