"""Small networks with random weights: at least one for each operation that has a bound."""

import torch
from torch import nn
from torch.nn import functional as F

SHAPE = (2, 6, 6)  # of an image
CLASSES = 3


class Function(nn.Module):
    """A network of `count` convolutions of 4 channels, a linear layer on `size` features, and a formula that joins them."""

    def __init__(self, formula, size, count=2):
        super().__init__()
        self.formula = formula
        self.convs = nn.ModuleList(nn.Conv2d(2 if number == 0 else 4, 4, 3, padding=1) for number in range(count))
        self.linear = nn.Linear(size, CLASSES)
        self.norm = nn.BatchNorm2d(4)
        self.slopes = nn.Parameter(torch.tensor([0.3, -0.2, 1.5, 0.0]))
        self.constant = nn.Parameter(torch.randn(4, 1, 1))
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        return self.linear(self.formula(self, x).flatten(1))


def after(function, size=144):
    """A network with `function` between two convolutions."""
    return lambda: Function(lambda net, x: F.relu(net.convs[1](function(net, net.convs[0](x)))), size)


def at_end(function, size):
    """A network with `function` after two convolutions with ReLU."""
    return lambda: Function(lambda net, x: function(net.convs[1](F.relu(net.convs[0](x)))), size)


def in_place(net, z):
    z = 2 * z
    z += 0.1
    return F.relu(z, inplace=True)


def split(net, z):
    a, b = z.chunk(2, 1)
    return torch.cat([b, F.relu(a - b)], 1)


def option_a(net, x):
    z = F.relu(net.convs[0](x))
    deep = F.max_pool2d(net.convs[1](z), 2)
    return F.relu(deep + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1)))


def residual(net, x):
    z = F.relu(net.convs[0](x))
    z = F.relu(net.norm(net.convs[1](z)) + z)
    return F.relu(z - 0.5 * net.convs[1](z))


def one_unit(net, x):
    """A ReLU of shape (N,) beside the features."""
    z = F.relu(net.convs[0](x))
    unit = F.relu(20 * net.convs[1](z).mean((2, 3)).mean(1) + 0.1)
    return torch.cat([z.flatten(1), unit.unsqueeze(1)], 1)


def layers(*modules):
    return lambda: nn.Sequential(*(module() for module in modules))


MAX_POOLS = {
    "max-pool": lambda z: F.max_pool2d(z, 2),
    "max-pool-padded": lambda z: F.max_pool2d(z, 3, 2, 1),
    "max-pool-dilated": lambda z: F.max_pool2d(z, 2, 1, 1, 2),
    "max-pool-ceil": lambda z: F.max_pool2d(z, 4, 4, ceil_mode=True),
    "max-pool-adaptive": lambda z: F.adaptive_max_pool2d(z, (3, 2)),
    "max-pool-wide": lambda z: F.max_pool2d(z, (3, 2), (1, 2)),
}
AFTER = {
    "relu": lambda net, z: F.relu(z),
    "leaky": lambda net, z: F.leaky_relu(z, 0.2),
    "leaky-steep": lambda net, z: F.leaky_relu(z, 1.7),
    "prelu": lambda net, z: F.prelu(z, net.slopes),
    "relu6": lambda net, z: F.relu6(4 * z),
    "hardtanh": lambda net, z: F.hardtanh(z, -0.1, 0.2),
    "hardsigmoid": lambda net, z: F.hardsigmoid(8 * z),
    "clamp-below": lambda net, z: z.clamp(min=-0.1),
    "clamp-above": lambda net, z: z.clamp(max=0.1),
    "clamp": lambda net, z: z.clamp(-0.05, 0.1),
    "abs": lambda net, z: z.abs(),
    "maximum": lambda net, z: torch.maximum(z, z.flip(1)),
    "minimum": lambda net, z: torch.minimum(z, z.flip(3)),
    "maximum-constant": lambda net, z: torch.maximum(z, net.constant),
    "batch-norm": lambda net, z: F.relu(net.norm(z)),
    "arithmetic": lambda net, z: F.relu((1 - z * net.constant) / 0.7 - 0.2 + z),
    "in-place": in_place,
    "split": split,
    "dropout": lambda net, z: F.dropout(F.relu(z), 0.5, net.training),
    "average": lambda net, z: F.interpolate(F.avg_pool2d(F.relu(z), 2), scale_factor=2),
    "permuted": lambda net, z: F.relu(z.transpose(2, 3).roll(1, 1).flip(2)),
    "padded": lambda net, z: F.relu(F.pad(z[:, :, 1:-1, 1:-1], (1, 1, 1, 1), value=0.3)),
    "shuffled": lambda net, z: F.pixel_unshuffle(F.pixel_shuffle(F.relu(z), 2), 2),
}
AT_END = {
    "mean": (lambda z: F.relu(z).mean((2, 3)), 4),
    "adaptive": (lambda z: F.adaptive_avg_pool2d(F.relu(z), (3, 2)), 24),
    "average-padded": (lambda z: F.avg_pool2d(F.relu(z), 3, 2, 1), 36),
    "unsqueezed": (lambda z: F.relu(z).flatten(1).unsqueeze(1).squeeze(1), 144),
}
NETWORKS = {name: after(function) for name, function in AFTER.items()}
NETWORKS |= {name: at_end(function, size) for name, (function, size) in AT_END.items()}
NETWORKS |= {
    name: at_end(lambda z, pool=pool: F.relu(pool(z)), pool(torch.zeros(1, 4, 6, 6)).numel())
    for name, pool in MAX_POOLS.items()
}
NETWORKS |= {
    "linear": layers(nn.Flatten, lambda: nn.Linear(72, CLASSES)),
    "mlp": layers(nn.Flatten, lambda: nn.Linear(72, 9), nn.ReLU, lambda: nn.Linear(9, 9), nn.ReLU,
                  lambda: nn.Linear(9, CLASSES, bias=False)),
    "convolutions": layers(
        lambda: nn.Conv2d(2, 4, (3, 2), (2, 1), (1, 0), groups=2), nn.ReLU,
        lambda: nn.Conv2d(4, 6, 3, padding=2, dilation=2, bias=False, groups=2), nn.ReLU,
        lambda: nn.Conv2d(6, 4, 2, stride=2, padding=1), nn.ReLU, nn.Flatten, lambda: nn.Linear(24, CLASSES)),
    "one-dimension": layers(
        lambda: nn.Flatten(2), lambda: nn.Conv1d(2, 3, 5, 3, 2), nn.ReLU, lambda: nn.MaxPool1d(2),
        lambda: nn.Conv1d(3, 3, 2), nn.ReLU, lambda: nn.AvgPool1d(5), nn.Flatten, lambda: nn.Linear(3, CLASSES)),
    "residual": lambda: Function(residual, 144),
    "option-a": lambda: Function(option_a, 36),
    "one-unit": lambda: Function(one_unit, 145),
    "two-outputs": lambda: nn.Sequential(Function(residual, 144), nn.Linear(CLASSES, 1), Binary()),
}  # fmt: skip


class Binary(nn.Module):
    """One logit z as the two logits (0, z)."""

    def forward(self, z):
        return torch.cat([torch.zeros_like(z), z], 1)


def network(name, seed=0):
    torch.manual_seed(seed)
    return NETWORKS[name]().eval().requires_grad_(False)
