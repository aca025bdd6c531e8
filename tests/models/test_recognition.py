"""Architectures found by the names and shapes of weights alone."""

import time

import pytest
import torch
import torchvision

from lsa_cli.models import recognition
from lsa_cli.models.architectures import build_architecture
from lsa_cli.models.recognition import (
    build_empty,
    classes_of,
    known_architectures,
    nearest,
    outline,
    recognise,
    shared_prefixes,
    views,
)


@pytest.mark.slow
def test_every_classifier_of_torchvision_and_every_own_network_is_told_from_all_others_with_its_classes():
    for arch, arguments in known_architectures():
        for classes in (10, 1000):
            given = {**arguments, "num_classes": classes} if arch != "lsa:moon-mlp" else arguments
            matches = recognise(outline(arch, given))
            assert [(match.arch, match.arguments) for match in matches] == [(arch, given)]


def test_no_two_known_architectures_have_the_same_signature():
    marks = [(row["digest"], row["count"]) for row in recognition._table()]
    assert len(set(marks)) == len(marks)
    assert [(row["arch"], row["arguments"]) for row in recognition._table()] == known_architectures()


@pytest.mark.parametrize("name", ["resnet18", "swin_t", "vit_b_32", "regnet_x_400mf", "googlenet", "maxvit_t"])
def test_a_network_without_memory_has_the_names_and_shapes_of_the_real_one(name):
    real = build_architecture(f"torchvision:{name}", {})
    assert outline(f"torchvision:{name}", {}) == {n: tuple(t.shape) for n, t in real.state_dict().items()}
    held = [t for t in build_empty(f"torchvision:{name}", {}).parameters() if t.device.type != "meta"]
    assert sum(t.numel() for t in held) < 100_000


@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "model.", "module._orig_mod.model.", "net.backbone.", "my_own."]
)
@pytest.mark.parametrize("counters", [True, False])
def test_leading_parts_and_absent_counters_are_no_obstacle(prefix, counters):
    names = outline("torchvision:resnet18", {"num_classes": 10})
    shapes = {prefix + n: s for n, s in names.items() if counters or "num_batches" not in n}
    assert [str(match) for match in recognise(shapes)] == ["torchvision:resnet18, num_classes=10"]


def test_a_wrapper_inside_the_network_is_seen_through():
    """pytorch/examples trains vgg with DataParallel around its features only."""
    names = outline("torchvision:vgg11", {})
    shapes = {n.replace("features.", "features.module."): s for n, s in names.items()}
    assert [match.arch for match in recognise(shapes)] == ["torchvision:vgg11"]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("conv1.weight", (64, 1, 7, 7)),
        ("layer4.1.conv2.weight", (512, 512, 1, 1)),
        ("fc.weight", (10, 100)),
        ("fc.bias", (11,)),
        ("fc.bias", ()),
        ("fc.bias", None),
        ("head.extra", (3,)),
    ],
)
def test_one_name_or_shape_that_differs_is_no_match(name, change):
    shapes = outline("torchvision:resnet18", {"num_classes": 10})
    shapes[name] = change
    assert recognise({n: s for n, s in shapes.items() if s is not None}) == []


def test_a_network_with_a_buffer_beside_it_that_may_be_its_normalisation_is_no_match():
    shapes = {f"model.{n}": s for n, s in outline("torchvision:resnet18", {}).items()}
    assert recognise({**shapes, "mean": (3,), "std": (3,)}) == []
    assert recognise({**shapes, "head.weight": (5, 1000), "head.bias": (5,)}) == []
    assert [m.arch for m in recognise({**shapes, "criterion.weight": (5,), "val_acc.tp": ()})] == [
        "torchvision:resnet18"
    ]


def test_layers_with_the_name_of_a_metric_belong_to_the_network():
    tensors = {"c1.weight": 1, "f1.weight": 2, "f1.bias": 3, "recall.weight": 4}
    assert [view.tensors for view in views(tensors)] == [tensors]


def test_views_start_with_the_names_as_they_are_and_drop_only_what_training_leaves():
    tensors = {
        "model.loss_head.weight": 1,
        "model.fc.weight": 2,
        "train_acc.tp": 3,
        "n_averaged": 4,
        "model.fc.total_ops": 5,
    }
    found = list(views(tensors))
    assert found[0].tensors == tensors
    assert found[1].tensors == {"model.loss_head.weight": 1, "model.fc.weight": 2}
    assert found[1].left_out == ("train_acc.tp", "n_averaged", "model.fc.total_ops")
    assert found[2].tensors == {"loss_head.weight": 1, "fc.weight": 2}
    assert found[2].removed == ("model.",)
    assert shared_prefixes(["model.fc.weight", "model.conv.weight", "train_acc.tp"]) == ["model."]


def test_up_to_four_parts_of_a_name_are_removed():
    assert [view.removed for view in views({"a.b.c.d.e.weight": 1, "a.b.c.d.e.bias": 2})][-1] == (
        "a.",
        "b.",
        "c.",
        "d.",
    )


def test_the_nearest_are_listed_with_what_differs_and_soon():
    shapes = outline("torchvision:resnet34", {"num_classes": 10})
    shapes["fc.1.weight"], shapes["fc.1.bias"] = shapes.pop("fc.weight"), shapes.pop("fc.bias")
    shapes["layer1.0.conv1.weight"] = (64, 64, 5, 5)
    start = time.perf_counter()
    near = nearest({f"module.{n}": s for n, s in shapes.items()})
    assert time.perf_counter() - start < 10
    assert near[0].arch == "torchvision:resnet34"
    assert str(near[0]) == (
        "torchvision:resnet34: 2 missing (fc.bias, fc.weight), 2 other (fc.1.bias, fc.1.weight), "
        "1 of another shape (layer1.0.conv1.weight)"
    )
    assert len(near) == 3


@pytest.mark.parametrize(
    ("arch", "arguments"),
    [
        ("torchvision:inception_v3", {}),
        ("torchvision:squeezenet1_0", {}),
        ("torchvision:densenet121", {}),
        ("lsa:cifar-resnet20", {}),
    ],
)
def test_the_number_of_classes_is_read_from_the_head_wherever_it_stands(arch, arguments):
    shapes = outline(arch, {**arguments, "num_classes": 13})
    backwards = {f"module.{name}": shapes[name] for name in reversed(shapes)}
    assert classes_of(arch, arguments, backwards) == 13
    assert classes_of(arch, arguments, {"fc9.weight": (3, 4)}) is None


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "convnext_atto", "levit_128s"]
)
def test_the_number_of_classes_of_a_timm_network(name):
    pytest.importorskip("timm")
    assert classes_of(f"timm:{name}", {}, outline(f"timm:{name}", {"num_classes": 13})) == 13


def test_a_network_whose_head_was_replaced_by_the_user_is_recognised_with_its_new_width():
    network = torchvision.models.mobilenet_v2(weights=None)
    network.classifier[1] = torch.nn.Linear(1280, 5)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert [str(match) for match in recognise(shapes)] == ["torchvision:mobilenet_v2, num_classes=5"]
