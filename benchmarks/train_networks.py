"""Trains the networks of benchmarks/networks, which `benchmarks.autoattack` attacks, on one thread with a stated seed.

    LSA_DATA_ROOT=... python -m benchmarks.train_networks [--out FOLDER] [mnist_mlp cifar_resnet8]

PGD adversarial training (arXiv 1706.06083): each step of SGD is on the adversarial examples of its batch alone. Test
images take no part in it, and the last epoch is kept. Weights are stored in half precision and loaded into float32.
"""

import argparse
import os
import pickle
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torchvision import datasets
from torchvision.models.resnet import BasicBlock

from lsa_cli.models.classifier import PRESETS, Classifier

NETWORKS = Path(__file__).with_name("networks")
SEED = 313
BATCH = 100


def mnist_mlp():
    """784-200-100-10 with ReLU."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 100), nn.ReLU(), nn.Linear(100, 10)
    )


def cifar_resnet8():
    """Three residual blocks with BatchNorm, of widths 16, 32 and 64, after a convolution of stride 2."""

    def block(inner, outer, stride):
        shortcut = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))
        return BasicBlock(inner, outer, stride, shortcut if stride > 1 else None)

    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        block(16, 16, 1), block(16, 32, 2), block(32, 64, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


def mnist_train(root):
    """The first 4,000 training images."""
    data = datasets.MNIST(root, train=True)
    return data.data[:4000, None] / 255, data.targets[:4000]


def cifar10_train(root):
    """The images of data_batch_1 alone."""
    with (Path(root) / "cifar-10-batches-py" / "data_batch_1").open("rb") as file:
        batch = pickle.load(file, encoding="latin1")
    return torch.from_numpy(batch["data"].reshape(-1, 3, 32, 32)) / 255, torch.tensor(batch["labels"])


def flipped_and_cropped(x):
    """Each image mirrored with probability 1/2, and cut at a random place from itself with 4 pixels of zeros around it."""
    n, _, height, width = x.shape
    x = torch.where(torch.rand(n, 1, 1, 1) < 0.5, x.flip(3), x)
    rows = torch.randint(9, (n, 1, 1)) + torch.arange(height)[:, None]
    columns = torch.randint(9, (n, 1, 1)) + torch.arange(width)
    padded = F.pad(x, (4, 4, 4, 4)).permute(0, 2, 3, 1)
    return padded[torch.arange(n)[:, None, None], rows, columns].permute(0, 3, 1, 2)


# name: network, training images and labels, augmentation, normalization, linf radius, attack steps, epochs
TRAININGS = {
    "mnist_mlp": (mnist_mlp, mnist_train, None, None, 0.1, 5, 25),
    "cifar_resnet8": (cifar_resnet8, cifar10_train, flipped_and_cropped, PRESETS["cifar10"], 4 / 255, 2, 50),
}


def pgd(model, x, y, eps, steps):
    """The last iterate of linf PGD from a random start, with steps of 2.5 eps / steps."""
    moved = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1)
    for _ in range(steps):
        moved.requires_grad_(True)
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(moved), y), moved)
        moved = moved.detach() + 2.5 * eps / steps * gradient.sign()
        moved = torch.clamp(moved, x - eps, x + eps).clamp(0, 1)
    return moved


def trained(name, root):
    """The network after its training: SGD with Nesterov momentum on a one-cycle schedule."""
    network, data, augment, normalization, eps, steps, epochs = TRAININGS[name]
    torch.manual_seed(SEED)
    x, y = data(root)
    body = network().to(memory_format=torch.channels_last)
    model = Classifier(body, normalization).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, epochs=epochs, steps_per_epoch=len(x) // BATCH)
    for epoch in range(epochs):
        right, started = 0, time.process_time()
        for rows in torch.randperm(len(x)).split(BATCH):
            inputs = augment(x[rows]) if augment else x[rows]
            logits = model(pgd(model, inputs, y[rows], eps, steps))
            optimizer.zero_grad()
            F.cross_entropy(logits, y[rows]).backward()
            optimizer.step()
            schedule.step()
            right += int((logits.argmax(1) == y[rows]).sum())
        seconds = time.process_time() - started
        print(f"{name}: epoch {epoch + 1} of {epochs}, adversarial {right / len(x):.1%}, {seconds:.0f} s", flush=True)
    return body


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=", ".join(TRAININGS))
    parser.add_argument("--out", type=Path, default=NETWORKS, help="folder of the weights; default: %(default)s")
    arguments = parser.parse_args()
    if "LSA_DATA_ROOT" not in os.environ:
        parser.error("LSA_DATA_ROOT is not set: no training images")
    torch.set_num_threads(1)
    for name in arguments.names or TRAININGS:
        body = trained(name, os.environ["LSA_DATA_ROOT"])
        halves = {
            key: value.half().contiguous() if value.is_floating_point() else value
            for key, value in body.state_dict().items()
        }
        torch.save(halves, arguments.out / f"{name}.pt")


if __name__ == "__main__":
    main()
