"""Networks by name, and their arguments."""

import pytest
import torch

from lsa_cli.errors import UsageError
from lsa_cli.models.architectures import ARCHITECTURES, build_architecture, runs_user_code
from lsa_cli.settings.values import parse_arguments


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("lsa:mnist-cn", "did you mean 'mnist-cnn'"),
        ("torchvision:resnet81", "did you mean 'resnet"),
        ("lsa_cli.nothing:build", "cannot import"),
        ("math:pi", "not a function"),
        ("math:floor", "failed when called with no arguments"),
        ("os:getcwd", "returned str, not a torch.nn.Module"),
    ],
)
def test_names_that_build_no_network(spec, says):
    with pytest.raises(UsageError, match=says):
        build_architecture(spec, {})


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        ("lsa:mnist-cnn", False),
        ("torchvision:vgg11", False),
        ("timm:resnet18", False),
        ("a.b:c", True),
        ("x.py:f", True),
    ],
)
def test_only_networks_that_ship_run_no_user_code(spec, code):
    assert runs_user_code(spec) == code


def test_arguments_are_plain_values_and_never_expressions():
    assert parse_arguments(["a=1", "b='x'", "c=word", "d=true", "e=[1, 2]", "f=none", "g=__import__('os')"]) == {
        "a": 1, "b": "x", "c": "word", "d": True, "e": [1, 2], "f": None, "g": "__import__('os')",
    }  # fmt: skip
    with pytest.raises(UsageError, match="name=value"):
        parse_arguments(["depth"])


@pytest.mark.parametrize("name", ["checkpoint_path", "pretrained", "pretrained_cfg", "cache_dir"])
def test_arguments_of_timm_that_name_files_or_downloads_are_barred(tmp_path, name):
    pytest.importorskip("timm")
    with pytest.raises(UsageError, match=f"{name} is not an argument of a network"):
        build_architecture("timm:resnet18", {name: str(tmp_path / "weights.pth")})


@pytest.mark.parametrize("name", ["hf-hub:timm/resnet18", "local-dir:/tmp"])
def test_timm_names_that_lead_to_files_or_downloads_are_unknown(name):
    pytest.importorskip("timm")
    with pytest.raises(UsageError, match="unknown timm architecture"):
        build_architecture(f"timm:{name}", {})


def test_timm_missing_is_told(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(UsageError, match="timm"):
        build_architecture("timm:resnet18", {})


CIFAR = [name for name in ARCHITECTURES.names() if "cifar" in name and not name.endswith(("101", "152", "110"))]


@pytest.mark.parametrize("name", CIFAR)
def test_networks_for_cifar_keep_the_resolution_up_to_the_second_stage(name):
    """The stem and first stage at 32 x 32, each later stage half as large: what their weights were trained with."""
    network = build_architecture(f"lsa:{name}", {"num_classes": 7}).eval()
    sizes = {}
    for stage in ("layer1", "layer2", "layer3"):
        getattr(network, stage).register_forward_hook(
            lambda m, i, out, stage=stage: sizes.update({stage: out.shape[-1]})
        )
    with torch.no_grad():
        assert network(torch.rand(2, 3, 32, 32)).shape == (2, 7)
    assert sizes == {"layer1": 32, "layer2": 16, "layer3": 8}


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_sizes_of_the_cifar_resnets_are_those_of_the_paper(depth, millions):
    """Table 6 of arXiv 1512.03385, which rounds to two figures."""
    count = sum(p.numel() for p in build_architecture(f"lsa:cifar-resnet{depth}", {}).parameters())
    assert abs(count / 1e6 - millions) < 0.05 * millions


@pytest.mark.parametrize("depth", [18, 50])
def test_pytorch_cifar_differs_from_torchvision_only_in_names(depth):
    torch.manual_seed(0)
    theirs = build_architecture(f"lsa:cifar-resnet{depth}", {}).eval()
    ours = build_architecture(f"lsa:pytorch-cifar-resnet{depth}", {}).eval()
    renamed = {
        name.replace("downsample", "shortcut").replace("fc.", "linear."): tensor
        for name, tensor in theirs.state_dict().items()
    }
    ours.load_state_dict(renamed, strict=True)
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))
