"""Checkpoints of other projects, each audited by one command, with the clean accuracy that was measured for it."""

import json

import pytest

from tests.cli.conftest import ROOT

NETWORKS = ROOT / "tests" / "cli" / "foreign_networks.py"
MNIST, FASHION = "torchvision:MNIST?root={root}", "torchvision:FashionMNIST?root={root}"
CIFAR = f"{NETWORKS}:cifar10_test?root={{root}}"

# file: (network, normalisation, data, images classified right of 10,000)
CASES = {
    "fast_adversarial/fgsm.pth": ("small_cnn", "none", MNIST, 9850),
    "advertorch/mnist_lenet5_clntrained.pt": ("LeNet5", "none", MNIST, 9889),
    "advertorch/mnist_lenet5_advtrained.pt": ("LeNet5", "none", MNIST, 9864),
    "convex_adversarial/fashion_mnist.pth": ("small_cnn", "none", FASHION, 7827),
    "burn/mnist.safetensors": ("Burn", "mnist", MNIST, 9917),
    "pytorch_resnet_cifar10/resnet20-12fca82f.th": ("ResNet20", "imagenet", CIFAR, 9173),
}


@pytest.mark.slow
@pytest.mark.parametrize("file", CASES)
def test_clean_accuracy_is_exact(lsa, data_root, file):
    network, normalize, data, right = CASES[file]
    result = lsa(
        "audit", data_root / "checkpoints" / file, "--arch", f"{NETWORKS}:{network}", "--normalize", normalize,
        "--data", data.format(root=data_root), "-n", "all", "--attack", "none", "--noise", "none", "--json", "-",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert json.loads(result.out)["verdict"]["clean"]["count"] == right


@pytest.mark.slow
def test_robust_accuracy_of_a_published_network(lsa, data_root):
    """PGD-40 with steps of 0.01 and no random start leaves 93.26% of the whole test set, by another implementation."""
    result = lsa(
        "audit", data_root / "checkpoints/advertorch/mnist_lenet5_advtrained.pt", "--arch", f"{NETWORKS}:LeNet5",
        "--normalize", "none", "--data", MNIST.format(root=data_root), "-n", 1000, "--noise", "none",
        "--attack", "pgd:steps=40,step_size=0.01,random_start=false", "--json", "-",
    )  # fmt: skip
    robust = json.loads(result.out)["verdict"]["robust"]
    assert robust["low"] <= 0.9326 <= robust["high"]
