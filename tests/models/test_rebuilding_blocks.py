"""Residual blocks found in names and shapes, and the networks that are made of them."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

from lsa_cli.auditing.network import open_network
from lsa_cli.models.rebuilding.blocks import read_structures
from lsa_cli.models.rebuilding.chain import build, source_of
from lsa_cli.models.rebuilding.described import chain, described
from lsa_cli.models.rebuilding.geometry import geometries
from lsa_cli.models.rebuilding.grouping import Block, Structure
from lsa_cli.models.rebuilding.search import exceptions_of, sums_of
from lsa_cli.models.rebuilding.statistics import running_misfit
from lsa_cli.models.rebuilding.variants import Variant, parts_of
from lsa_cli.settings import settings_from
from tests.concatenating_networks import Fire, dense, fires, grown, squeezenet
from tests.fitting import fitted
from tests.foreign_networks import ResNet2b, ResNet20
from tests.residual_networks import (
    ResNet9,
    basic,
    declared,
    excited,
    imagenet_bottleneck,
    inverted,
    late,
    nested,
    randomize,
    separable,
    squeezed,
    wide,
)

MANY = [
    (one, 1)
    for one in (
        basic,
        declared,
        wide,
        late,
        nested,
        imagenet_bottleneck,
        ResNet9,
        inverted,
        separable,
        squeezed,
        excited,
    )
] + [
    (ResNet20, 3),
    (ResNet2b, 3),
]


# Networks that put channels together, with what they have that is not usual.
CONCATENATING = [
    (dense, {"pooling": "average"}),
    (grown, {"pooling": "average"}),
    (squeezenet, {"exception": "an activation behind the last layer"}),
    (fires, {}),
]


def candidates(network, channels, size, names=list, most=20):
    """The most usual variants with ReLU, the first of every structure among them."""
    state = network.state_dict()
    found = read_structures({name: tuple(state[name].shape) for name in names(state)}, channels)
    pairs = [(one, geometry) for one in found for geometry in itertools.islice(geometries(one.elements, size), most)]
    for one, geometry in sorted(pairs, key=lambda pair: pair[0].cost + pair[1].cost):
        for sums in sums_of(one):
            yield Variant(one, geometry, "ReLU", "max", ("norm", "act", "pool"), sums, "none")


def loaded(module, network):
    module.load_state_dict(network.state_dict())  # strictly: every weight has its place
    return module.eval()


def first_equal(network, x, names, most=20, **choices):
    """The first of the most usual variants that answers as the network does, and its answer."""
    truth = network(x)
    for variant in itertools.islice(candidates(network, x.shape[1], x.shape[2:], names, most), 80):
        variant = replace(variant, **choices)
        answer = loaded(build(parts_of(variant)), network)(x)
        if torch.allclose(answer, truth, atol=1e-4 * float(truth.abs().max())):
            return variant, answer
    pytest.fail("the network is not among the variants")


@pytest.mark.parametrize(("make", "channels"), MANY)
@pytest.mark.parametrize("names", [list, sorted])
def test_the_network_is_among_the_most_usual_ones_and_its_file_builds_it(make, channels, names):
    network, size = randomize(make()), 32 if channels == 3 else 28
    x = torch.rand(2, channels, size, size)
    with torch.no_grad():
        variant, answer = first_equal(network, x, names)
        written = {}
        exec(source_of(parts_of(variant), "A network."), written)
        assert torch.equal(loaded(written["build"](), network)(x), answer)


@pytest.mark.parametrize(("make", "choices"), CONCATENATING)
@pytest.mark.parametrize("names", [list, sorted])
def test_dense_layers_and_fire_modules_are_read_written_and_described(make, choices, names):
    network, x = randomize(make()), torch.rand(2, 1, 28, 28)
    with torch.no_grad():
        variant, answer = first_equal(network, x, names, 50, **choices)
        written = {}
        exec(source_of(parts_of(variant), "A network."), written)
        assert torch.equal(loaded(written["build"](), network)(x), answer)
        _, arguments = described(parts_of(variant))
        assert torch.equal(loaded(chain(**arguments), network)(x), answer)
        next(part for part in arguments["parts"] if "join" in part)["join"] = "product"
        with pytest.raises(ValueError, match="unknown join 'product'"):
            chain(**arguments)


def grouped():
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.GroupNorm(4, 8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))


def sloped():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.PReLU(8), nn.Flatten(), nn.Linear(288, 16), nn.LayerNorm(16), nn.PReLU(), nn.Linear(16, 10)
    )  # fmt: skip


def of_images():
    return nn.Sequential(
        nn.BatchNorm2d(1), nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)
    )


def of_pixels():
    return nn.Sequential(
        nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10)
    )


def of_flat_images():
    return nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


@pytest.mark.parametrize("names", [list, sorted])
def test_three_norms_behind_three_convolutions_of_a_fire_module_belong_to_them_in_their_order(names):
    state = Fire(8, 4, 16, nn.BatchNorm2d).state_dict()  # bn1 is as wide as no convolution with its number
    before, after = nn.Conv2d(1, 8, 3).state_dict(), nn.Linear(16, 10).state_dict()
    parts = (("a", before), ("b", state), ("c", after))
    shapes = {f"{part}.{name}": tuple(item.shape) for part, some in parts for name, item in some.items()}
    (fire,) = read_structures({name: shapes[name] for name in names(shapes)}, 1)[0].blocks
    places = [(layer.name, layer.norm.name) for layer in (fire.layers[0], fire.shortcut, fire.layers[1])]
    assert places == [("b.squeeze", "b.bn1"), ("b.expand1x1", "b.bn2"), ("b.expand3x3", "b.bn3")]


@pytest.mark.parametrize("make", [grouped, sloped, of_images, of_pixels, of_flat_images])
def test_norms_of_all_kinds_and_activations_with_weights_are_read(make):
    network, x = randomize(make()), torch.rand(4, 1, 8, 8)
    made = [loaded(build(parts_of(one)), network)(x) for one in candidates(network, 1, (8, 8), most=1)]
    assert any(torch.allclose(one, network(x), atol=1e-5) for one in made)


def test_an_activation_behind_the_last_block_is_that_before_the_head():
    network = randomize(wide())
    one = next(one for one in candidates(network, 1, (28, 28)) if one.structure.blocks)
    bare = tuple(
        replace(element, norm=None) if isinstance(element, Block) else element for element in one.structure.elements
    )
    one = replace(one, structure=Structure(bare, 0.0))
    kinds = [
        getattr(part, "kind", "sum") for part in parts_of(replace(one, exception="an activation behind the last block"))
    ]
    assert "an activation behind the last block" in exceptions_of(one)
    assert kinds == ["Conv2d", *["sum"] * len(one.structure.blocks), "ReLU", *kinds[-3:]]
    assert "ReLU" not in [getattr(part, "kind", "sum") for part in parts_of(one)]


def test_layers_that_reduce_and_restore_a_width_are_read_as_a_chain_too():
    sizes = [(784, 64), (64, 16), (16, 64), (64, 10)]
    state = nn.Sequential(*(nn.Linear(*size) for size in sizes)).state_dict()
    (one,) = read_structures({name: tuple(item.shape) for name, item in state.items()}, 1)
    assert [(layer.inner, layer.outer) for layer in one.elements] == sizes


def test_a_block_that_changes_its_width_without_weights_pads_at_both_sides_or_at_the_end():
    state = ResNet20().state_dict()
    found = read_structures({name: tuple(item.shape) for name, item in state.items()}, 3)
    pads = {tuple(block.pads for block in one.blocks) for one in found if len(one.blocks) == 9}
    assert pads == {("", "", "", pad, "", "", pad, "", "") for pad in ("both", "end")}


def test_running_statistics_fit_the_images_of_the_training_and_no_others():
    torch.manual_seed(0)
    norm, x = nn.BatchNorm2d(3), torch.rand(500, 3, 4, 4) * torch.tensor([1.0, 2.0, 3.0])[:, None, None]
    norm.running_mean, norm.running_var = x.mean((0, 2, 3)), x.var((0, 2, 3))
    norm.eval()
    same, other = (running_misfit(norm, lambda images=images: norm(images))[1] for images in (x, 2 * x))
    mean, var = norm.running_mean.double(), norm.running_var.double()
    closed = 0.5 * (4 - 1 - torch.log(torch.tensor(4.0)) + mean**2 / var).median()  # KL(N(2m, 4v) || N(m, v))
    assert same < 1e-4
    assert other == pytest.approx(float(closed), rel=1e-3)


@pytest.mark.parametrize(
    ("make", "seed", "said"),
    [
        (grown, 0, "4 dense layers (input before output), ReLU, 1 max pool, 1 average pool"),
        (fires, 3, "3 fire modules (two branches), ReLU, 2 max pools"),
    ],
)
def test_a_trained_network_that_puts_channels_together_is_found(tmp_path, make, seed, said):
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target)
    torch.manual_seed(seed)
    network = make()
    optimizer = torch.optim.Adam(network.parameters(), 0.005)
    for rows in itertools.chain.from_iterable(torch.randperm(1200).split(64) for _ in range(8)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x[rows]), y[rows]).backward()
        optimizer.step()
    network.eval()
    torch.save(network.state_dict(), tmp_path / "net.pt")
    x, y, lines = x[1200:], y[1200:], []
    opened = open_network(tmp_path / "net.pt", settings_from({}), {}, (x, y), lines.append)
    with torch.no_grad():
        assert torch.equal(opened.classifier.eval()(x).argmax(1), network(x).argmax(1))
    assert said in lines[0]


def test_a_trained_residual_network_is_found(tmp_path):
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = torch.tensor(digits.images[:800], dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target[:800])
    torch.manual_seed(0)
    network = fitted(basic(), x, y, 40)
    torch.save(network.state_dict(), tmp_path / "net.pt")
    lines = []
    opened = open_network(tmp_path / "net.pt", settings_from({}), {}, (x, y), lines.append)
    with torch.no_grad():
        assert torch.equal(opened.classifier.eval()(x).argmax(1), network(x).argmax(1))
    assert "3 residual blocks (sum, activation), ReLU" in lines[0]
