"""Trained networks of other projects: what is proven is not broken, and as much is proven as was published."""

import json
from pathlib import Path

import pytest
import torch

from lsa_cli.attacks.threat import Linf
from lsa_cli.models.architectures import mnist_cnn
from lsa_cli.models.classifier import Classifier
from lsa_cli.proofs import Prover
from tests.foreign_networks import Burn, LeNet5, ResNet2b, ScriptedCNN, cifar10_test, lightning, small_cnn

SAMPLES = Path(__file__).parents[2] / "sample_models"
MNIST = ((0.1307,), (0.3081,))
CIFAR = ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
# (file, network, data, normalisation, eps, samples, proven at least)
NETWORKS = {
    "fashion": ("convex_adversarial/fashion_mnist.pth", small_cnn, "FashionMNIST", None, 0.1, 100, 60),
    "fgsm": ("fast_adversarial/fgsm.pth", small_cnn, "MNIST", None, 0.3, 10, 0),
    "lenet_cln": ("advertorch/mnist_lenet5_clntrained.pt", LeNet5, "MNIST", None, 0.1, 2, 0),
    "lenet_adv": ("advertorch/mnist_lenet5_advtrained.pt", LeNet5, "MNIST", None, 0.3, 2, 0),
    "lenet_cln_near": ("advertorch/mnist_lenet5_clntrained.pt", LeNet5, "MNIST", None, 0.02, 2, 2),
    "lenet_adv_near": ("advertorch/mnist_lenet5_advtrained.pt", LeNet5, "MNIST", None, 0.05, 2, 2),
    "burn": ("burn/mnist.safetensors", Burn, "MNIST", MNIST, 0.01, 2, 0),
    "lightning": ("Pytorch-Lightning-practice/epoch=4-step=4300.ckpt", lightning, "MNIST", None, 0.02, 16, 16),
    "scripted": ("HandWritten-Digit/model_scripted.pt", ScriptedCNN, "MNIST", None, 0.002, 2, 0),
    "mnist_cnn": ("mnist_cnn.pt", mnist_cnn, "MNIST", MNIST, 0.01, 2, 0),
    "mnist_cnn_at": ("mnist_cnn_at.pt", mnist_cnn, "MNIST", MNIST, 0.02, 2, 0),
    "resnet2b": ("alpha-beta-CROWN/resnet2b.pth", ResNet2b, "CIFAR", CIFAR, 2 / 255, 8, 1),
}


def opened(name, data_root, count=None):
    path, build, data, normalization, eps, few, _ = NETWORKS[name]
    count = few if count is None else count
    file = (SAMPLES if build is mnist_cnn else data_root / "checkpoints") / path
    if path.endswith("safetensors"):
        state = pytest.importorskip("safetensors.torch").load_file(file)
    elif build is ScriptedCNN:
        state = torch.jit.load(file, map_location="cpu").state_dict()
    else:
        state = torch.load(file, weights_only=True, map_location="cpu")
        state = state.get("state_dict", state)
    network = build()
    network.load_state_dict({key.removeprefix("network."): tensor for key, tensor in state.items()})
    if data == "CIFAR":
        images, y = cifar10_test(data_root)
    else:
        datasets = pytest.importorskip("torchvision").datasets
        read = getattr(datasets, data)(data_root, train=False)
        images, y = read.data[:, None], read.targets
    x, y = images[:count].float() / 255, y[:count]
    return Classifier(network.eval(), normalization).eval().requires_grad_(False), x, y, Linf(eps)


def broken(model, x, y, threat, steps=40):
    """(N,) bool: whether projected gradient descent on the margin finds another class."""
    found, inside = model(x).argmax(1) != y, x.clone()
    for step in range(steps):
        inside.requires_grad_(True)
        logits = model(inside)
        loss = logits.gather(1, y[:, None])[:, 0] - logits.scatter(1, y[:, None], -torch.inf).amax(1)
        (slope,) = torch.autograd.grad(loss.sum(), inside)
        size = 2 * threat.eps * (1 - step / steps)
        inside = threat.project(inside.detach() - size * slope.sign(), x)
        found |= model(inside).argmax(1) != y
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_proven_is_not_broken(name, data_root):
    model, x, y, threat = opened(name, data_root)
    prover = Prover.of(model, x[:4])
    proven = prover.proves(x, y, threat)
    assert proven.sum() >= NETWORKS[name][-1]
    assert not (proven & broken(model, x, y, threat)).any()
    record = data_root.parent / "oracle" / f"{name}.json"
    if record.exists():  # the official AutoAttack on the same rows
        robust = torch.tensor(json.loads(record.read_text())["robust_correct"][: len(x)]).bool()
        assert not (proven & ~robust).any()
    smaller = Linf(threat.eps / 4)
    some = prover.proves(x[:2], y[:2], smaller)
    assert not (some & broken(model, x[:2], y[:2], smaller)).any()
