"""Attacks that look for the smallest change: against exact solutions, other libraries and published distances."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from lsa_cli.attacks import ATTACKS, make_threat
from lsa_cli.attacks.deepfool import nearest_plane, onto_plane
from lsa_cli.auditing.network import open_network
from lsa_cli.errors import NumericalError, UsageError
from lsa_cli.settings import settings_from

ORDER = {"linf": np.inf, "l2": 2, "l1": 1}
DUAL = {"linf": 1, "l2": 2, "l1": np.inf}
EPS = {"linf": 0.1, "l2": 1.0, "l1": 5.0}
MINIMAL = [name for name in ATTACKS.names() if ATTACKS.get(name).kind == "minimal"]


def attack(name, norm, bounds=(0.0, 1.0), **options):
    return ATTACKS.get(name)(threat=make_threat(norm, EPS[norm], bounds), **options)


def linear(classes, features=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Linear(features, classes)
    with torch.no_grad():
        model.weight.copy_(torch.randn(classes, features, generator=generator))
        model.bias.copy_(0.1 * torch.randn(classes, generator=generator))
    return model


def curved(classes=4, channels=1, size=8):
    torch.manual_seed(0)
    features = channels * size * size
    return nn.Sequential(nn.Flatten(), nn.Linear(features, 32), nn.ELU(), nn.Linear(32, classes)).eval()


# ---- the projection ------------------------------------------------------------------------------------------------


def shortest(x, w, gap, norm, bounds):
    """Length of the smallest d with w . d = gap and x + d within the bounds, by bisection or greedily; None: none."""
    low, high = bounds or (-np.inf, np.inf)
    sign = np.sign(w * gap)
    room = np.where(sign > 0, high - x, x - low)
    size, gap = np.abs(w), abs(gap)
    moving = size > 0
    size, room = size[moving], room[moving]
    if (size * room).sum() < gap:
        return None
    if norm == "l1":
        length = 0.0
        for coordinate in np.argsort(-size):
            step = min(room[coordinate], gap / size[coordinate])
            length, gap = length + step, gap - step * size[coordinate]
        return length
    rate = np.ones_like(size) if norm == "linf" else size
    least, most = 0.0, gap / (size * rate).max() + 1.0
    while (size * np.minimum(most * rate, room)).sum() < gap:
        most *= 2
    for _ in range(200):
        middle = (least + most) / 2
        if (size * np.minimum(middle * rate, room)).sum() < gap:
            least = middle
        else:
            most = middle
    return np.linalg.norm(np.minimum(most * rate, room), ord=ORDER[norm])


number = st.floats(-2, 2, width=32).map(lambda v: v if abs(v) > 0.01 else 0.0)
unit = st.floats(0, 1, width=32)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(unit, min_size=6, max_size=6),
    st.lists(number, min_size=6, max_size=6),
    st.floats(-4, 4, width=32),
    st.sampled_from(["linf", "l2", "l1"]),
    st.sampled_from([None, (0.0, 1.0)]),
)
def test_the_projection_onto_a_plane_in_a_box_is_the_nearest_point(x, w, gap, norm, bounds):
    assume(any(w))
    x, w = np.array(x), np.array(w)
    exact = shortest(x, w, gap, norm, bounds)
    tensors = torch.tensor(x)[None], torch.tensor(w)[None], torch.tensor([[gap]]).double()
    d = onto_plane(*tensors, norm, bounds)[0].numpy()
    if bounds is not None:
        assert (x + d >= -1e-9).all()
        assert (x + d <= 1 + 1e-9).all()
    if exact is None:  # the farthest corner in that direction
        np.testing.assert_allclose(x + d, np.where(w == 0, x, np.sign(w * gap) > 0))
    else:
        np.testing.assert_allclose(w @ d, gap, atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(d, ord=ORDER[norm]), exact, atol=1e-5)


@pytest.mark.parametrize("norm", ORDER)
def test_no_other_point_of_plane_and_box_is_nearer(norm):
    generator = torch.Generator().manual_seed(0)
    x, w = torch.rand(4, 10, generator=generator), torch.randn(4, 10, generator=generator)
    gap = 0.6 * (w.abs() * torch.where(w > 0, 1 - x, x)).sum(1, keepdim=True)  # most of the room is needed
    best = onto_plane(x, w, gap, norm, (0.0, 1.0))
    for _ in range(300):
        other = (x + best + 0.2 * torch.randn(x.shape, generator=generator)).clamp(0, 1)
        other = other + onto_plane(other, w, gap - (w * (other - x)).sum(1, keepdim=True), "l2", (0.0, 1.0))
        torch.testing.assert_close((w * (other - x)).sum(1, keepdim=True), gap, atol=1e-4, rtol=0)
        lengths = [torch.linalg.vector_norm(d, ord=ORDER[norm], dim=1) for d in (best, other - x)]
        assert (lengths[0] <= lengths[1] + 1e-5).all()


@pytest.mark.parametrize("norm", ORDER)
@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_the_projection_in_float32_of_an_image_and_of_gradients_of_any_size(norm, scale):
    generator = torch.Generator().manual_seed(1)
    x, w = torch.rand(3, 3072, generator=generator), torch.randn(3, 3072, generator=generator)
    w[:, ::3] = 0
    gap = torch.tensor([[1.0], [-40.0], [300.0]])
    d = onto_plane(x, w * scale, gap * scale, norm, (0.0, 1.0))
    torch.testing.assert_close((w.double() * d.double()).sum(1, keepdim=True), gap.double(), rtol=2e-5, atol=0)
    for row in range(3):
        exact = shortest(x[row].double().numpy(), w[row].double().numpy(), float(gap[row]), norm, (0.0, 1.0))
        assert float(torch.linalg.vector_norm(d[row], ord=ORDER[norm])) == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize("norm", ORDER)
@pytest.mark.parametrize("bounds", [None, (0.0, 1.0)])
def test_without_a_gradient_nothing_moves(norm, bounds):
    assert not onto_plane(torch.rand(2, 5), torch.zeros(2, 5), torch.ones(2, 1), norm, bounds).any()


# ---- linear networks -----------------------------------------------------------------------------------------------

# How near the exact distance each gets, at the worst sample and at the median. FMN and CW follow the likeliest
# rival, which is not always the nearest.
OPTIONS = {
    "fab": ({"steps": 30}, 1.01, 1.002),
    "fab-t": ({"steps": 30}, 1.01, 1.002),
    "deepfool": ({}, 1.03, 1.021),
    "cw": ({"steps": 200, "lr": 0.05, "initial_weight": 0.1}, 1.25, 1.02),
    "fmn": ({}, 1.3, 1.02),
}
CASES = [(name, norm) for name in MINIMAL if name in OPTIONS for norm in ATTACKS.get(name).norms]


@pytest.mark.parametrize(("name", "norm"), CASES)
@pytest.mark.parametrize("classes", [2, 3, 8])
def test_the_distance_to_the_boundary_of_a_linear_network(name, norm, classes):
    model = linear(classes)
    x = torch.randn(12, 12, generator=torch.Generator().manual_seed(2))
    logits = model(x).detach()
    y = logits.argmax(1)
    w = model.weight.detach()[y][:, None] - model.weight.detach()
    lengths = torch.linalg.vector_norm(w, ord=DUAL[norm], dim=2)
    gaps = logits.gather(1, y[:, None]) - logits
    exact = torch.where(lengths > 0, gaps / lengths, torch.inf).amin(1)
    options, worst, typical = OPTIONS[name]
    tool = attack(name, norm, bounds=None, **options)
    x_adv = tool(model, x, y)
    found = tool.threat.distance(x_adv, x)
    assert (model(x_adv).argmax(1) != y).all()
    assert (found >= exact * (1 - 1e-5)).all()
    assert float((found / exact).max()) <= worst
    assert float((found / exact).median()) <= typical


@pytest.mark.parametrize(("name", "norm"), [case for case in CASES if case[0] != "deepfool"])
@pytest.mark.parametrize("classes", [2, 5])
def test_the_distance_where_the_box_is_in_the_way(name, norm, classes):
    model = linear(classes)
    generator = torch.Generator().manual_seed(4)
    x = torch.where(torch.rand(20, 12, generator=generator) < 0.5, 0.0, 1.0)
    x = (x + 0.05 * torch.randn(20, 12, generator=generator)).clamp(0, 1)  # next to corners: half of the ways are shut
    y = model(x).argmax(1)
    weight, logits = model.weight.detach().double().numpy(), model(x).detach().double().numpy()
    exact = []
    for point, label, scores in zip(x.double().numpy(), y.tolist(), logits, strict=True):
        ways = [
            shortest(point, weight[other] - weight[label], scores[label] - scores[other], norm, (0.0, 1.0))
            for other in range(classes)
            if other != label
        ]
        exact.append(min((way for way in ways if way is not None), default=np.inf))
    exact = torch.tensor(exact)
    options, worst, typical = OPTIONS[name]
    tool = attack(name, norm, **options)
    x_adv = tool(model, x, y)
    found = torch.where(model(x_adv).argmax(1) != y, tool.threat.distance(x_adv, x).double(), torch.inf)
    assert (found >= exact * (1 - 1e-5)).all()
    assert float(x_adv.min()) >= 0
    assert float(x_adv.max()) <= 1
    assert exact.isfinite().sum() > 10
    reachable = exact.isfinite()
    ratio = found[reachable] / exact[reachable]
    assert float(ratio.max()) <= (1.25 if name == "fab" else worst)  # its choice of a rival overlooks the box
    assert float(ratio.median()) <= typical


def test_the_nearest_plane_is_that_of_the_nearest_rival():
    model = linear(5)
    x = torch.randn(7, 12, generator=torch.Generator().manual_seed(2))
    logits = model(x).detach()
    y = logits.argmax(1)
    rivals = logits.scatter(1, y[:, None], -torch.inf).topk(4, dim=1).indices
    for norm in ORDER:
        gap, normal, seen = nearest_plane(model, x, y, rivals, norm)
        distance = gap / torch.linalg.vector_norm(normal, ord=DUAL[norm], dim=1)
        torch.testing.assert_close(seen, logits)
        for column in range(4):
            one_gap, one_normal, _ = nearest_plane(model, x, y, rivals[:, column : column + 1], norm)
            one = one_gap / torch.linalg.vector_norm(one_normal, ord=DUAL[norm], dim=1)
            assert (distance <= one + 1e-6).all()


# ---- what all of them keep to --------------------------------------------------------------------------------------

QUICK = {
    "fab": {"steps": 8, "restarts": 2},
    "fab-t": {"steps": 8, "targets": 3},
    "cw": {"steps": 40, "lr": 0.1, "initial_weight": 0.1, "searches": 4},
    "fmn": {"steps": 20},
}


def quick(name, norm, **options):
    return attack(name, norm, **{**QUICK.get(name, {}), **options})


def batch(count=16, classes=4):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 1, 8, 8, generator=generator), torch.arange(count) % classes


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_wrong_as_it_is_means_distance_zero_and_no_further_work(name, norm):
    model = curved()
    x, y = batch()
    right = model(x).argmax(1) == y
    sizes = []

    def counted(inputs):
        sizes.append(len(inputs))
        return model(inputs)

    for goal in ("worst", "break"):
        sizes.clear()
        x_adv, found_at = quick(name, norm).run(counted, x, y, goal=goal)
        assert torch.equal(x_adv[~right], x[~right])
        assert (found_at[~right] == 1).all()
        assert max(sizes[1:]) == int(right.sum())


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_what_was_found_breaks_the_network_again_one_by_one(name, norm):
    torch.manual_seed(0)
    first, second = 2 * torch.randn(64, 128) / 8, torch.randn(128, 4)

    def model(inputs):
        return torch.sin(4 * inputs.flatten(1) @ first) @ second  # rugged: where it starts decides what it finds

    x, _ = batch()
    y = model(x).argmax(1)
    x_adv = quick(name, norm)(model, x, y)
    moved = (x_adv != x).flatten(1).any(1)
    assert moved.sum() >= 12
    assert all(int(model(x_adv[row : row + 1]).argmax()) != int(y[row]) for row in moved.nonzero().flatten())


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_a_network_that_looks_at_nothing_leaves_the_input(name, norm):
    x, _ = batch()
    y = torch.zeros(16, dtype=torch.long)
    for bounds in ((0.0, 1.0), None):
        tool = ATTACKS.get(name)(threat=make_threat(norm, EPS[norm], bounds), **QUICK.get(name, {}))
        x_adv = tool(lambda inputs: inputs.flatten(1)[:, :3] * 0 + torch.tensor([1.0, 0.0, 0.5]), x, y)
        assert torch.equal(x_adv, x)


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_two_logits_of_which_one_is_constant(name, norm):
    body = linear(1)

    def model(inputs):
        return torch.cat([torch.zeros(len(inputs), 1), body(inputs)], 1)

    x = torch.rand(8, 12, generator=torch.Generator().manual_seed(5))
    y = model(x).argmax(1)
    x_adv = quick(name, norm)(model, x, y)
    broke = model(x_adv).argmax(1) != y
    assert broke.sum() >= 6


@pytest.mark.parametrize("name", ["fab", "deepfool"])
def test_a_network_without_an_input_gradient_is_named(name):
    x, y = batch()
    with pytest.raises(NumericalError, match="no input gradient"):
        quick(name, "l2")(lambda inputs: nn.functional.one_hot(y[: len(inputs)], 4).float(), x, y)
    scale = torch.ones(4, requires_grad=True)
    with pytest.raises(NumericalError, match="no input gradient"):
        quick(name, "l2")(lambda inputs: nn.functional.one_hot(y[: len(inputs)], 4) * scale, x, y)


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_with_one_class_there_is_no_other_to_reach(name, norm):
    x, _ = batch()
    assert torch.equal(quick(name, norm)(curved(1), x, torch.zeros(16, dtype=torch.long)), x)


@pytest.mark.parametrize("name", ["fab", "fab-t"])
def test_the_first_run_starts_at_the_input_and_restarts_elsewhere(name):
    model = curved()
    x, _ = batch()
    y = model(x).argmax(1)
    seen = []

    def watched(inputs):
        seen.append(inputs.detach())
        return model(inputs)

    def queries(seed, **options):
        seen.clear()
        x_adv = attack(name, "l2", steps=3, targets=1, **options)(watched, x, y, seed=seed)
        return list(seen), make_threat("l2", 1.0).distance(x_adv, x)

    (once, alone), (first, distance), (second, _) = queries(0), queries(0, restarts=2), queries(1, restarts=2)
    assert all(torch.equal(one, other) for one, other in zip(first[:7], second[:7], strict=True))
    assert torch.equal(first[1], x)
    assert not torch.equal(first[7], second[7])
    assert (make_threat("l2", 0.5).distance(first[7], x) <= alone / 2 + 0.1).all()
    assert (distance <= alone + 1e-6).all()
    assert len(once) == len(first) - 6


def test_cw_ends_each_sample_for_itself():
    """A sample whose descent has come to rest is not looked at again in that descent."""
    model = linear(3)
    x = torch.randn(10, 12, generator=torch.Generator().manual_seed(2))
    y = model(x).argmax(1)
    sizes = []

    def counted(inputs):
        sizes.append(len(inputs))
        return model(inputs)

    tool = attack("cw", "l2", bounds=None, steps=400, lr=0.05, initial_weight=0.1)
    tool(counted, x, y)
    assert sum(sizes) < 0.8 * 10 * 9 * 400
    assert len(set(sizes)) > 3


@pytest.mark.parametrize(
    ("name", "norm", "options"),
    [
        ("fab", "l2", {"steps": 0}),
        ("fab", "l2", {"targets": 0}),
        ("fab-t", "l2", {"restarts": 0}),
        ("fab", "l2", {"beta": 1.0}),
        ("fab", "l2", {"eta": 0.9}),
        ("fab", "l2", {"alpha_max": 1.5}),
        ("deepfool", "l2", {"steps": 0}),
        ("deepfool", "l2", {"classes": 1}),
        ("deepfool", "l2", {"overshoot": 0.0}),
        ("deepfool", "l1", {}),
        ("cw", "l2", {"steps": 0}),
        ("cw", "l2", {"lr": 0.0}),
        ("cw", "l2", {"initial_weight": 0.0}),
        ("cw", "linf", {}),
        ("fmn", "l2", {"steps": 0}),
        ("fmn", "l2", {"step_size": 0.0}),
        ("fmn", "l2", {"gamma": 1.0}),
        ("fmn", "l2", {"gamma_final": 0.5}),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(name, norm, options):
    with pytest.raises(UsageError):
        attack(name, norm, **options)


# ---- real networks -------------------------------------------------------------------------------------------------


def distances(model, x, y, x_adv, norm):
    """(N,) of the samples that are right as they are; infinite where not broken."""
    with torch.no_grad():
        right, broke = model(x).argmax(1) == y, model(x_adv).argmax(1) != y
    return torch.where(broke, make_threat(norm, 1.0).distance(x_adv, x), torch.inf)[right]


@pytest.mark.slow
def test_one_run_of_fmn_gives_the_curve_that_pgd_needs_a_run_a_point_for(samples):
    network = open_network(samples / "mnist_cnn.pt", settings_from({}), {})
    rows = np.arange(50)
    model = network.classifier.eval()
    x, y = network.data.read(rows), torch.from_numpy(network.labels[rows])
    for norm, radii in {"linf": (0.05, 0.08), "l2": (0.7, 1.2)}.items():
        x_adv = attack("fmn", norm)(model, x, y)
        with torch.no_grad():
            broke = model(x_adv).argmax(1) != y
        distance = torch.where(broke, make_threat(norm, 1.0).distance(x_adv, x), torch.inf)
        for eps in radii:
            pgd = ATTACKS.get("pgd")(threat=make_threat(norm, eps), steps=40)(model, x, y)
            with torch.no_grad():
                robust = int((model(pgd).argmax(1) == y).sum())
            assert int((distance > eps).sum()) <= robust + 1, (norm, eps)


def checkpoint(data_root, name):
    torchvision = pytest.importorskip("torchvision")
    from tests.foreign_networks import LeNet5

    data = torchvision.datasets.MNIST(data_root, train=False)
    model = LeNet5().eval().requires_grad_(False)
    model.load_state_dict(torch.load(data_root / "checkpoints/advertorch" / name, map_location="cpu"))
    return model, data.data[:100, None].float() / 255, data.targets[:100]


# Medians that advertorch published for the whole test set: FAB with 20 steps, for l2 also DDN with 1000.
PUBLISHED = [
    ("fab", "linf", "clntrained", {"steps": 20}, 0.112),
    ("fab", "linf", "advtrained", {"steps": 20}, 0.3509),
    ("fab", "l2", "clntrained", {"steps": 20}, 1.423),
    ("fmn", "linf", "clntrained", {}, 0.112),
    ("fmn", "linf", "advtrained", {}, 0.3509),
    ("fmn", "l2", "clntrained", {}, 1.388),
    ("fmn", "l2", "advtrained", {}, 1.872),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "norm", "training", "options", "median"), PUBLISHED)
def test_published_distances_are_reached(data_root, name, norm, training, options, median):
    """5% for 100 images instead of 10,000."""
    model, x, y = checkpoint(data_root, f"mnist_lenet5_{training}.pt")
    x_adv = attack(name, norm, **options)(model, x, y)
    assert float(distances(model, x, y, x_adv, norm).median()) <= 1.05 * median


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_distances_are_those_of_adv_lib_or_smaller(data_root, norm):
    peer = pytest.importorskip("adv_lib.attacks", reason="the peers are not installed")
    model, x, y = checkpoint(data_root, "mnist_lenet5_clntrained.pt")
    pairs = {
        "fab": ({"steps": 20}, lambda: peer.fab(model, x, y, ORDER[norm], n_iter=20)),
        "fmn": ({"steps": 50}, lambda: peer.fmn(model, x, y, ORDER[norm], steps=50)),
        "deepfool": ({}, lambda: peer.df(model, x, y, steps=50, norm=ORDER[norm])),
    }
    for name, (options, theirs) in pairs.items():
        if norm in ATTACKS.get(name).norms:
            ours = distances(model, x, y, attack(name, norm, **options)(model, x, y), norm)
            assert float(ours.median()) <= 1.02 * float(distances(model, x, y, theirs(), norm).median()), name
