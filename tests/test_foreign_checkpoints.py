"""Checkpoints of other projects, each audited by one command, with the clean accuracy that was measured for it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lsa_cli import audit
from lsa_cli.auditing.network import open_network
from lsa_cli.models.checkpoint import read_checkpoint
from lsa_cli.models.classifier import PRESETS, normalization_of
from lsa_cli.models.loading import UnknownNetworkError, load_network
from lsa_cli.settings import settings_from
from tests.cli.conftest import lsa, refused  # noqa: F401
from tests.foreign_networks import small_cnn

NETWORKS = Path(__file__).with_name("foreign_networks.py")
MNIST, FASHION = "torchvision:MNIST?root={root}", "torchvision:FashionMNIST?root={root}"
CIFAR = f"{NETWORKS}:cifar10_test?root={{root}}"
RESNET2B = "0.4914,0.4822,0.4465/0.2471,0.2435,0.2616"
OPAQUE = ["--trust-code"]
RESNET20, LENET = "pytorch_resnet_cifar10/resnet20-12fca82f.th", "advertorch/mnist_lenet5_{}trained.pt"
SCRIPTED, PICKLED = "HandWritten-Digit/model_scripted.pt", "HandWritten-Digit/model.pth"
TRACED, EXPORTED = "derived/resnet2b_traced_norm_inside.pt", "derived/lenet5_advtrained.pt2"
EMA = "derived/mnist_net_model_and_model_ema.pth"
# Two networks are nearly as good: noise was added to the weights of the first file, and LeakyReLU(0.1) fits the second one too.
UNDECIDED = (EMA, SCRIPTED)

COMPILED = "derived/resnet20_torchcompile_orig_mod.pt"  # RESNET20 as torch.compile names its weights

# file, network (None: the file's own), normalisation, data, images classified right of 10,000, more options
CASES = [
    ("fast_adversarial/fgsm.pth", "small_cnn", "none", MNIST, 9850, []),
    (LENET.format("cln"), "LeNet5", "none", MNIST, 9889, []),
    (LENET.format("adv"), "LeNet5", "none", MNIST, 9864, []),
    ("convex_adversarial/fashion_mnist.pth", "small_cnn", "none", FASHION, 7827, []),
    ("burn/mnist.safetensors", "Burn", "mnist", MNIST, 9917, []),
    (RESNET20, "ResNet20", "imagenet", CIFAR, 9173, []),
    ("alpha-beta-CROWN/resnet2b.pth", "ResNet2b", RESNET2B, CIFAR, 6925, []),
    ("Pytorch-Lightning-practice/epoch=4-step=4300.ckpt", "lightning", "none", MNIST, 9685, []),
    (SCRIPTED, "ScriptedCNN", "none", MNIST, 9911, []),
    (SCRIPTED, None, "none", MNIST, 9911, OPAQUE),
    (PICKLED, "PickledCNN", "none", MNIST, 9891, []),
    (EMA, "small_cnn", "none", MNIST, 9850, ["--weights", "model_ema"]),
    (EMA, "small_cnn", "none", MNIST, 8825, []),
    (EXPORTED, "LeNet5", "none", MNIST, 9864, []),
    (EXPORTED, None, "none", MNIST, 9864, OPAQUE),
    (TRACED, None, "none", CIFAR, 6925, OPAQUE),
    ("derived/fashion_mnist_fp16_model_prefix.safetensors", "small_cnn", "none", FASHION, 7829, []),
]


@pytest.fixture
def audited(lsa, data_root):  # noqa: F811
    def run(file, network, normalize, data, *more):
        arch = ["--arch", f"{NETWORKS}:{network}"] if network else []
        result = lsa(
            "audit", data_root / "checkpoints" / file, *arch, "--normalize", normalize,
            "--data", data.format(root=data_root), "--noise", "none", "--json", "-", *more,
        )  # fmt: skip
        assert result.code == 0, result.err
        return json.loads(result.out), result.err

    return run


@pytest.mark.slow
@pytest.mark.parametrize(("file", "network", "normalize", "data", "right", "more"), CASES)
def test_clean_accuracy_is_exact(audited, file, network, normalize, data, right, more):
    report, err = audited(file, network, normalize, data, "-n", "all", "--attack", "none", *more)
    assert report["evidence"] is None  # clean accuracy gives no reason for doubt
    assert report["verdict"]["clean"]["count"] == right
    assert report["verdict"]["clean"]["n"] == 10_000
    assert ("imports" in err) == ("--trust-code" in more)  # what trusting means is named, and only where it is asked


@pytest.mark.slow
def test_the_normalisation_of_a_known_network_is_that_of_its_training(data_root):
    said = []
    network = open_network(
        data_root / "checkpoints" / RESNET20, settings_from({"data": CIFAR.format(root=data_root)}), {}, say=said.append
    )
    assert normalization_of(network.classifier) == tuple(pytest.approx(part) for part in PRESETS["imagenet"])
    assert any("BatchNorm remembers" in line for line in said)  # clean accuracy with "cifar10" is as good


def test_the_table_holds_every_file(data_root):
    files = {str(path.relative_to(data_root / "checkpoints")) for path in (data_root / "checkpoints").rglob("*.*")}
    assert files == {COMPILED, *(file for file, *_ in CASES)}


def test_the_weights_of_a_compiled_network_are_those_of_the_network(data_root):
    settings = settings_from(
        {"arch": f"{NETWORKS}:ResNet20", "normalize": "imagenet", "data": CIFAR.format(root=data_root)}
    )
    plain, compiled = (open_network(data_root / "checkpoints" / file, settings, {}) for file in (RESNET20, COMPILED))
    one, other = plain.classifier.state_dict(), compiled.classifier.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    x = plain.data.read(np.arange(20))
    with torch.no_grad():
        assert torch.equal(plain.classifier(x), compiled.classifier(x))


def test_a_harvested_program_shows_all_its_layers_and_the_program_none(audited):
    few = ["-n", "40", "--attack", "fgsm", "--eps", "0.1"]
    inside, _ = audited(SCRIPTED, "ScriptedCNN", "none", MNIST, *few)
    opaque, _ = audited(SCRIPTED, None, "none", MNIST, *few, *OPAQUE)
    assert len(inside["outcomes"][0]["layers"]["rows"]) == 5
    assert opaque["outcomes"][0]["layers"] is None
    assert opaque["outcomes"][0]["robust"] == inside["outcomes"][0]["robust"]  # the same network, the same attack
    assert opaque["subject"]["parameters"] == inside["subject"]["parameters"]
    assert any("shows no layers" in note for note in opaque["subject"]["notes"])


@pytest.mark.parametrize("file", [SCRIPTED, TRACED])
def test_a_program_is_not_run_unless_trusted_and_shows_no_layers(refused, data_root, file):  # noqa: F811
    data = ["--data", (CIFAR if file == TRACED else MNIST).format(root=data_root)]
    path = data_root / "checkpoints" / file
    if file == TRACED:  # of the others the weights alone are put together again
        refused("audit", path, *data, says=["which is code", "--arch", "--trust-code"])
    refused(
        "audit", path, *data, "--trust-code", "--layers", "learnable", says=["show no layers", "leave --layers out"]
    )


def test_a_pickled_network_is_refused_by_the_name_it_would_import(refused, data_root):  # noqa: F811
    path, data = data_root / "checkpoints" / PICKLED, ["--data", MNIST.format(root=data_root)]
    with pytest.raises(UnknownNetworkError, match=r"__main__\.CNN.*--arch.*--trust-code"):
        load_network(read_checkpoint(path), None, {})
    refused("audit", path, *data, "--trust-code", says=["even when trusted", "CNN", "importable"])


def test_averaged_weights_are_named_and_not_taken_unasked(audited, refused, data_root):  # noqa: F811
    report, _ = audited(EMA, "small_cnn", "none", MNIST, "-n", "20", "--attack", "none")
    assert any("--weights model_ema" in note for note in report["subject"]["notes"])
    refused(
        "audit", data_root / "checkpoints" / EMA, "--weights", "teacher", "--data", MNIST.format(root=data_root),
        says=["'teacher'", "model, model_ema"],
    )  # fmt: skip


def test_accuracy_far_below_what_the_file_claims_is_told(audited):
    """Left out, this file's normalisation costs points that it says it has."""
    report, _ = audited("alpha-beta-CROWN/resnet2b.pth", "ResNet2b", "none", CIFAR, "-n", "500", "--attack", "none")
    found = {finding["code"]: finding for finding in report["evidence"]["findings"]}
    assert report["evidence"]["verdict"] == "doubtful"
    assert "69.2% (test_acc)" in found["clean-accuracy-below-claim"]["message"]
    assert "--normalize cifar10" in found["another-normalization"]["advice"]
    honest, _ = audited("alpha-beta-CROWN/resnet2b.pth", "ResNet2b", RESNET2B, CIFAR, "-n", "500", "--attack", "none")
    assert honest["evidence"] is None  # nothing was attacked, and nothing speaks against the clean accuracy


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "data"),
    [
        (file, data)
        for file, network, _, data, _, more in CASES
        if network and not more and data == MNIST and file not in UNDECIDED
    ],
)
def test_a_chain_is_put_together_again_without_any_option(lsa, data_root, file, data):  # noqa: F811
    """The clean accuracy is that of the network whose code the project published."""
    right = {name: count for name, network, *_, count, _ in CASES if network for name in [name]}
    spec = data.format(root=data_root)
    result = lsa(
        "audit",
        data_root / "checkpoints" / file,
        "--data",
        spec,
        "-n",
        "all",
        "--attack",
        "none",
        "--noise",
        "none",
        "--json",
        "-",
    )
    assert result.code == 0, result.err
    assert json.loads(result.out)["verdict"]["clean"]["count"] == right[file]
    assert "network reconstructed from the weights" in result.err


@pytest.mark.slow
def test_robust_accuracy_of_a_published_network(audited):
    """PGD-40 with steps of 0.01 and no random start leaves 93.26% of the whole test set, by another implementation."""
    attack = "pgd:steps=40,step_size=0.01,random_start=false"
    report, _ = audited(LENET.format("adv"), "LeNet5", "none", MNIST, "-n", "1000", "--attack", attack)
    robust = report["verdict"]["robust"]
    assert robust["low"] <= 0.9326 <= robust["high"]


def test_by_default_the_smallest_change_counts_in_l2(data_root):
    """Steps of fixed size leave some 90 of these 100 images right; most of them need a change shorter than the radius."""
    torchvision = pytest.importorskip("torchvision")
    data = torchvision.datasets.MNIST(data_root, train=False)
    model = small_cnn()
    model.load_state_dict(torch.load(data_root / "checkpoints/fast_adversarial/fgsm.pth", map_location="cpu"))
    x, y = data.data[:100, None].float() / 255, data.targets[:100]
    report = audit(model, data=(x, y), norm="l2", eps=2.0, noise="none", layers="none", threads=1, fast=False)
    left = {outcome.name: outcome.robust.count for outcome in report.outcomes}
    assert left["pgd"] > 80
    assert report.verdict.robust.count <= 11
