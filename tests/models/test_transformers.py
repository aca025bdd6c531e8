"""Vision transformers put together again from their weights."""

import importlib.util
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer

from lsa_cli.auditing.network import open_network
from lsa_cli.auditing.viewing import rebuild_alone
from lsa_cli.errors import UsageError
from lsa_cli.models.architectures import build_architecture
from lsa_cli.models.pickles.symbols import StorageSpec
from lsa_cli.models.rebuilding.described import described
from lsa_cli.models.rebuilding.transformers import Choice, choices_of, parts_of, transformer_of, with_activations
from lsa_cli.models.weights import TensorSpec
from lsa_cli.settings import settings_from
from tests.fitting import fitted


def torchvision_one(classes=10):
    network = VisionTransformer(8, 4, 2, 2, 16, 24, num_classes=classes)
    network.conv_proj = nn.Conv2d(1, 16, 4, 4)
    nn.init.normal_(network.heads.head.weight)
    return network


def timm_one():
    timm = pytest.importorskip("timm")
    return timm.models.vision_transformer.VisionTransformer(
        8, 2, 1, 10, embed_dim=16, depth=2, num_heads=4, mlp_ratio=2
    )


class OfTorch(nn.Module):
    """torch's encoder, with names of its own around it."""

    def __init__(self):
        super().__init__()
        self.embed, self.place = nn.Conv2d(1, 16, 2, 2), nn.Parameter(torch.randn(1, 16, 16))
        layer = nn.TransformerEncoderLayer(16, 4, 24, 0.0, "relu", batch_first=True)
        self.encoder, self.fc = nn.TransformerEncoder(layer, 2), nn.Linear(16, 10)

    def forward(self, x):
        return self.fc(self.encoder(self.embed(x).flatten(2).transpose(1, 2) + self.place).mean(1))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.to_qkv = nn.LayerNorm(16), nn.Linear(16, 96, bias=False)
        self.to_out = nn.Sequential(nn.Linear(32, 16), nn.Dropout(0.0))

    def forward(self, x):
        q, k, v = (part.unflatten(2, (4, 8)).transpose(1, 2) for part in self.to_qkv(self.norm(x)).chunk(3, 2))
        return self.to_out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Perceptron(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 24), nn.GELU(), nn.Dropout(0.0), nn.Linear(24, 16))

    def forward(self, x):
        return self.net(x)


class Pixels(nn.Module):
    """Patches of 4 x 4 pixels, the channels of a pixel together."""

    def forward(self, x):
        n, c, h, w = x.shape
        return x.view(n, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(n, -1, 16 * c)


class ByLinear(nn.Module):
    """The layout of vit-pytorch: a linear layer on patches, an inner width of its own, and the mean of all tokens."""

    def __init__(self, channels=3):
        super().__init__()
        self.pos_embedding, self.cls_token = nn.Parameter(torch.randn(1, 5, 16)), nn.Parameter(torch.randn(1, 1, 16))
        wide = 16 * channels
        self.to_patch_embedding = nn.Sequential(Pixels(), nn.LayerNorm(wide), nn.Linear(wide, 16), nn.LayerNorm(16))
        self.transformer = nn.Module()
        self.transformer.norm = nn.LayerNorm(16)
        self.transformer.layers = nn.ModuleList(nn.ModuleList([Attention(), Perceptron()]) for _ in range(2))
        self.mlp_head = nn.Linear(16, 10)

    def forward(self, x):
        x = self.to_patch_embedding(x)
        x = torch.cat([self.cls_token.expand(len(x), 1, -1), x], 1) + self.pos_embedding
        for attention, perceptron in self.transformer.layers:
            x = x + attention(x)
            x = x + perceptron(x)
        return self.mlp_head(self.transformer.norm(x).mean(1))


CASES = {
    "torchvision": (torchvision_one, 1, Choice(2, "token")),
    "timm": (timm_one, 1, Choice(4, "token")),
    "torch": (OfTorch, 1, Choice(4, "mean", "ReLU", norm_first=False)),
    "vit-pytorch": (ByLinear, 3, Choice(4, "mean")),
}


def read(network):
    kind = {torch.float32: "float32"}
    specs = {
        name: TensorSpec(
            StorageSpec(name, kind[item.dtype], item.numel()), "float32", tuple(item.shape), item.stride(), 0
        )
        for name, item in network.state_dict().items()
    }
    return transformer_of(specs)[1]


@pytest.mark.parametrize("name", CASES)
def test_the_network_of_the_true_choice_gives_the_logits_of_the_one_that_was_saved(name):
    make, channels, choice = CASES[name]
    torch.manual_seed(0)
    network, x = make().eval(), torch.rand(5, channels, 8, 8)
    for weight in network.parameters():
        if weight.ndim == 2:
            nn.init.normal_(weight, std=0.5)
    shape = read(network)
    assert (shape.channels, shape.size) == (channels, 8)
    listed = [one for first, cost in choices_of(shape) for one, _ in with_activations(shape, first, cost)]
    assert choice in listed
    outputs = []
    for one in (choice, replace(choice, heads=1)):
        made = parts_of(shape, one).build().eval()
        made.load_state_dict(network.state_dict())
        with torch.no_grad():
            outputs.append(made(x))
    with torch.no_grad():
        truth = network(x)
    assert torch.allclose(outputs[0], truth, atol=1e-5)
    arch, arguments = described(parts_of(shape, choice))
    written = build_architecture(arch, json.loads(json.dumps(arguments))).eval()
    written.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert torch.equal(written(x), outputs[0])
    assert not torch.allclose(outputs[1], truth, atol=1e-3)


def test_a_transformer_that_overflows_is_refused(tmp_path):
    """The weights are finite, and every choice answers infinity."""
    network = OfTorch()
    nn.init.constant_(network.fc.weight, 3e38)
    nn.init.constant_(network.fc.bias, 3e38)
    torch.save(network.state_dict(), tmp_path / "net.pt")
    images = torch.rand(100, 1, 8, 8), torch.arange(100) % 10
    with pytest.raises(UsageError, match="answers these images with NaN or infinity"):
        open_network(tmp_path / "net.pt", settings_from({}), {}, images)


def extra(network):
    network.encoder.layers[0].extra = nn.Conv2d(1, 1, 1)


def flat(network):
    network.encoder.layers[0].self_attention.in_proj_weight = nn.Parameter(torch.ones(768))


@pytest.mark.parametrize("change", [extra, flat])
def test_weights_of_another_kind_are_no_transformer(change):
    network = torchvision_one()
    change(network)
    specs = {
        name: TensorSpec(StorageSpec(name, "float32", item.numel()), "float32", tuple(item.shape), item.stride(), 0)
        for name, item in network.state_dict().items()
    }
    assert transformer_of(specs) is None


@pytest.fixture(scope="module")
def trained():
    from sklearn.datasets import load_digits

    found = load_digits()
    x, y = torch.tensor(found.images, dtype=torch.float32)[:, None] / 16, torch.tensor(found.target)
    torch.manual_seed(0)
    return fitted(torchvision_one(), x[:600], y[:600], 150), x, y


def test_a_trained_transformer_is_never_taken_for_one_that_answers_otherwise(trained, tmp_path):
    network, x, y = trained
    torch.save(network.state_dict(), tmp_path / "net.pt")
    lines = []
    try:
        opened = open_network(tmp_path / "net.pt", settings_from({}), {}, (x, y), lines.append)
    except UsageError as refusal:
        assert "several transformers are as good" in str(refusal)  # noqa: PT017 - either is right
        return
    with torch.no_grad():
        answers, truth = opened.classifier.eval()(x).argmax(1), network(x).argmax(1)
    assert float((answers == truth).float().mean()) >= 0.99
    assert lines[0].startswith("transformer reconstructed from the weights: ")


def test_the_audit_of_each_transformer_that_is_as_good_is_named_and_runs(trained, tmp_path):
    network, x, y = trained
    torch.save(network.state_dict(), tmp_path / "net.pt")
    np.savez(tmp_path / "few.npz", x_val=x[600:720], y_val=y[600:720], x_test=x[720:724], y_test=y[720:724])
    given = {"data": f"npz:{tmp_path}/few.npz", "split": "val", "limit": 20}
    with pytest.raises(UsageError, match="several transformers are as good") as refusal:
        open_network(tmp_path / "net.pt", settings_from(given), {})
    commands = refusal.value.commands
    start = f"lsa audit {tmp_path}/net.pt --data npz:{tmp_path}/few.npz --split val -n 20 --arch lsa:reconstructed"
    assert commands[:2] == tuple(f"{start} {_stated(*one)}" for one in ((2, "GELU"), (4, "ReLU")))
    named = {"heads": 4, "pool": "token", "activation": "ReLU", "norm_first": True}
    asked = {**given, "arch": "lsa:reconstructed", "arch_args": named, "normalize": "none"}
    lines = []
    opened = open_network(tmp_path / "net.pt", settings_from(asked), {}, None, lines.append)
    assert lines[0].startswith("transformer reconstructed from the weights: 4 heads, ReLU, the class token")
    asked["arch_args"] = {"heads": 2, "activation": "GELU", "pool": "token", "norm_first": True}
    opened = open_network(tmp_path / "net.pt", settings_from(asked), {})
    assert opened.arch_args == asked["arch_args"]
    with torch.no_grad():
        assert torch.allclose(opened.classifier.eval()(x[:50]), network(x[:50]), atol=1e-4)
    for wrong, why in (({"heads": 3}, "has no heads=3; --arch-args takes heads=1|2|4"), ({}, "needs --arch-args")):
        with pytest.raises(UsageError, match=why.replace("|", r"\|")):
            open_network(tmp_path / "net.pt", settings_from({**asked, "arch_args": wrong}), {})


def _stated(heads, activation):
    stated = {"heads": heads, "pool": "token", "activation": activation, "norm_first": True}
    return " ".join(f"--arch-args {name}={value}" for name, value in stated.items()) + " --normalize none"


def test_images_of_another_size_say_the_option_that_resizes(trained, tmp_path):
    network, _, y = trained
    torch.save(network.state_dict(), tmp_path / "net.pt")
    with pytest.raises(UsageError, match="vision transformer for images of 1 x 8 x 8: add --input-size 8"):
        open_network(tmp_path / "net.pt", settings_from({}), {}, (torch.rand(40, 1, 12, 12), y[:40]))


def test_the_written_file_builds_the_network(trained, tmp_path):
    network, x, y = trained
    torch.save(network.state_dict(), tmp_path / "net.pt")
    np.savez(tmp_path / "data.npz", images=x.numpy(), labels=y.numpy())
    rebuilt = rebuild_alone(
        tmp_path / "net.pt", settings_from({"data": f"npz:{tmp_path / 'data.npz'}"}), lambda line: None
    )
    (tmp_path / "written.py").write_text(rebuilt.source)
    spec = importlib.util.spec_from_file_location("written", tmp_path / "written.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.build().eval()
    made.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert torch.equal(made(x[:9]), rebuilt.loaded.body.eval()(x[:9]))
