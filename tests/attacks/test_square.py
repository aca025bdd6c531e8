"""Square Attack: what its queries are, what it reaches on networks whose optimum is known, and that it needs no gradient."""

import pytest
import torch
from torch import nn

from lsa_cli.attacks import ATTACKS, make_threat
from lsa_cli.attacks.losses import margin
from lsa_cli.attacks.randomness import belongs_to, normal_like
from lsa_cli.attacks.square import Canvas, Square, _bump, bumps
from lsa_cli.errors import UsageError
from lsa_cli.models.classifier import predicted_class


def images(count=4, shape=(1, 8, 8), seed=1):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))


def network(features=64, classes=4):
    """The last bias makes it predict every class for some input."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(features, 16), nn.ReLU(), nn.Linear(16, classes)).eval()
    with torch.no_grad():
        model[3].bias -= model(torch.rand(64, features)).mean(0)
    return model


class Recording(nn.Module):
    """Remembers what it was asked."""

    def __init__(self, body):
        super().__init__()
        self.body, self.inputs = body, []

    def forward(self, x):
        self.inputs.append(x.clone())
        return self.body(x)


# First query of each stage, of 10,000: the initial share is halved after 10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000.
STAGES = {1: 1, 11: 2, 51: 4, 201: 8, 501: 16, 1001: 32, 2001: 64, 4001: 128, 6001: 256, 8001: 512, 10_000: 512}


def test_the_share_of_a_window_follows_the_papers_schedule():
    attack = Square(make_threat("linf", 0.1), queries=10_000)
    divided = 1
    for query in range(1, 10_001):
        divided = STAGES.get(query, divided)
        assert attack.share(query) == 0.8 / divided


@pytest.mark.parametrize("queries", [100, 5000, 20_000])
def test_the_schedule_scales_with_the_number_of_queries(queries):
    attack, full = (Square(make_threat("linf", 0.1), queries=n, p_init=0.3) for n in (queries, 10_000))
    for query in range(1, queries):
        assert attack.share(query) == full.share(query * 10_000 // queries)


@pytest.mark.parametrize(
    ("shape", "share", "size"),
    [
        ((1, 28, 28), 0.8, (25, 25)),
        ((3, 32, 32), 0.05, (7, 7)),
        ((1, 28, 28), 0.8 / 512, (1, 1)),
        ((1, 1, 1), 0.8, (1, 1)),
        ((3, 4, 40), 0.1, (4, 4)),
        ((3, 4, 40), 0.5, (4, 20)),
        ((3, 40, 4), 0.5, (20, 4)),
        ((100,), 0.25, (1, 25)),
        ((100,), 0.001, (1, 1)),
        ((6, 6), 0.25, (3, 3)),
    ],
)
def test_windows_are_squares_of_the_share_and_longer_where_a_square_does_not_fit(shape, share, size):
    assert Canvas.of(torch.zeros(2, *shape)).window(share) == size


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 9), (3, 9, 5), (30,)])
def test_every_linf_query_repaints_one_window_of_the_best_image_so_far(shape):
    """Which also says that the loss never falls: whatever is not better is not built upon."""
    x, y = images(4, shape), torch.arange(4)
    eps, queries = 0.1, 150
    model = Recording(network(x[0].numel()))
    attack = Square(make_threat("linf", eps, bounds=None), queries=queries)
    result = attack(model, x, y)
    canvas = Canvas.of(x)
    assert len(model.inputs) == queries
    assert canvas.channels == (1 if len(shape) == 1 else shape[0])
    start = (model.inputs[0] - x).reshape(4, canvas.channels, canvas.height, canvas.width)
    torch.testing.assert_close(start.abs(), torch.full_like(start, eps))
    assert (start == start[:, :, :1]).all() or torch.allclose(start, start[:, :, :1].expand_as(start), atol=1e-6)
    best, value = model.inputs[0], margin(model.body(model.inputs[0]), y)
    apart = 0
    for query, candidate in enumerate(model.inputs[1:], start=1):
        changed = (candidate != best).reshape(4, canvas.channels, canvas.height, canvas.width)
        assert changed.flatten(1).any(1).all()  # no query is spent on an image already known
        high, wide = canvas.window(attack.share(query))
        rows, columns = (changed.any(dim=1).any(dim=axis) for axis in (2, 1))
        corners = set()
        for row, column in zip(rows, columns, strict=True):
            (across,), (down,) = column.nonzero(as_tuple=True), row.nonzero(as_tuple=True)
            assert int(down[-1] - down[0]) < high
            assert int(across[-1] - across[0]) < wide
            corners.add((int(down[0]), int(across[0])))
        apart += len(corners) > 1
        now = margin(model.body(candidate), y)
        better = now > value
        best = torch.where(better.reshape(-1, *[1] * len(shape)), candidate, best)
        value = torch.where(better, now, value)
    assert apart > 50  # a window of its own for each sample
    torch.testing.assert_close(margin(model.body(result), y), value)
    torch.testing.assert_close((result - x).abs(), torch.full_like(x, eps))


def boundary(norm, shape, seed=3):
    """A linear network of two classes, inputs of the first, and their exact distances to the boundary."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), 2))
    x = images(6, shape) - 0.5
    logits = model(x).detach()
    y = logits.argmax(1)
    normal = (model[1].weight[0] - model[1].weight[1]).detach()
    gap = (logits[:, 0] - logits[:, 1]).abs()
    return model, x, y, gap / torch.linalg.vector_norm(normal, ord={"linf": 1, "l2": 2}[norm])


@pytest.mark.parametrize(
    ("norm", "shape", "factor"),
    [("linf", (12,), 1.02), ("linf", (1, 6, 6), 1.02), ("linf", (3, 3, 5), 1.02),
     ("l2", (12,), 1.3), ("l2", (1, 6, 6), 2), ("l2", (3, 8, 8), 3)],
)  # fmt: skip
def test_how_far_beyond_the_boundary_of_linear_networks_all_are_broken(norm, shape, factor):
    """linf gets every sign right in time. l2 mixes hills and valleys, which are poor at a normal of white noise."""
    model, x, y, distance = boundary(norm, shape)
    for ratio, breaks in ((factor, True), (0.98, False)):
        threat = type(make_threat(norm, 1))(ratio * distance, None)
        moved = Square(threat, queries=600)(model, x, y, goal="break")
        assert ((model(moved).argmax(1) != y) == breaks).all()
        assert threat.contains(moved, x).all()


class EverWorse(nn.Module):
    """Each look is worse than the one before, so each is built upon; none breaks."""

    def __init__(self):
        super().__init__()
        self.queries = 0

    def forward(self, x):
        self.queries += 1
        return torch.tensor([0.0, -1 / self.queries]).expand(len(x), 2)


@pytest.mark.parametrize("shape", [(3, 16, 16), (50,), (1, 1, 1)])
def test_rounding_does_not_add_up_over_a_thousand_l2_steps(shape):
    x = images(2, shape)
    threat = make_threat("l2", 0.7, bounds=None)
    moved = Square(threat, queries=1500)(EverWorse(), x, torch.zeros(2, dtype=torch.long))
    torch.testing.assert_close(threat.distance(moved, x), torch.full((2,), 0.7), rtol=1e-5, atol=0)


def test_the_box_is_kept_and_what_it_cuts_off_an_l2_change_is_used_elsewhere():
    x, y = torch.zeros(3, 1, 12, 12), torch.zeros(3, dtype=torch.long)
    x[:, :, :6] = 0.5
    threat = make_threat("l2", 1.0)
    once, often = (Square(threat, queries=queries)(EverWorse(), x, y) for queries in (1, 400))
    assert threat.contains(often, x).all()
    assert (threat.distance(once, x) < 0.9).all()  # half of the start points out of the box
    assert (threat.distance(often, x) > threat.distance(once, x)).all()


def test_hills_are_rings_of_inverse_squares():
    """Equation 2 for 3 x 3 and 2 x 5, by hand."""
    ring = 1 / 4
    torch.testing.assert_close(
        _bump(3, 3),
        torch.full((3, 3), ring).index_put((torch.tensor([1]), torch.tensor([1])), torch.tensor([1 + ring])),
    )
    assert _bump(2, 5).tolist()[1] == pytest.approx([1 / 9, 1 / 9 + 1 / 4, 1 / 9 + 1 / 4 + 1, 1 / 9 + 1 / 4, 1 / 9])


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (5, 5), (3, 9)])
def test_a_hill_lies_beside_a_valley_and_both_have_length_one(size):
    above, beside = bumps(*size).reshape(2, *size)
    assert float(above.norm()) == pytest.approx(1)
    assert float(beside.norm()) == pytest.approx(1)
    if size[0] > 1:
        assert (above[: size[0] // 2] > 0).all()
        assert (above[size[0] // 2 :] < 0).all()
    if size[1] > 1:
        assert (beside[:, : size[1] // 2] > 0).all()
        assert (beside[:, size[1] // 2 :] < 0).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_what_broke_is_not_asked_again_where_only_the_verdict_counts(norm):
    x, y = images(12), torch.arange(12) % 4
    model = Recording(network())
    attack = Square(make_threat(norm, {"linf": 0.02, "l2": 0.3}[norm]), queries=60, restarts=2)
    _, found_at = attack.run(model, x, y, goal="break")
    asked = [len(inputs) for inputs in model.inputs]
    for look, count in enumerate(asked, start=1):
        assert count == int(((found_at == 0) | (found_at >= look)).sum())
    assert 0 < int((found_at > 0).sum()) < 12
    assert len(asked) == 120
    model.inputs.clear()
    attack(model, x, y)
    assert [len(inputs) for inputs in model.inputs] == [12] * 120


SHAPES = [(1, 8, 8), (3, 5, 9), (30,)]
RADII = {"linf": torch.tensor([0.02, 0.05, 0.1, 0.3]), "l2": torch.tensor([0.2, 0.5, 1.0, 2.0])}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("norm", RADII)
def test_candidates_at_once_are_those_that_come_one_by_one(norm, shape):
    """The network likes none better than the start, so all change the start. 59 is no multiple of 8."""
    model = Recording(lambda x: torch.zeros(len(x), 2))
    x, y = images(4, shape), torch.zeros(4, dtype=torch.long)
    threat, queries = type(make_threat(norm, 1))(RADII[norm]), 60
    Square(threat, queries)(model, x, y)
    one_by_one = torch.stack(model.inputs, 1)
    model.inputs.clear()
    attack = Square(threat, queries, at_once=8)
    attack(model, x, y)
    assert [len(inputs) // 4 for inputs in model.inputs] == [1, *[8] * 7, 3]
    at_once = torch.cat([inputs.unflatten(0, (4, -1)) for inputs in model.inputs], 1)
    same_size = [
        query for query in range(queries) if attack.share(query) == attack.share(max(0, query - (query - 1) % 8))
    ]
    assert len(same_size) > 40
    torch.testing.assert_close(at_once[:, same_size], one_by_one[:, same_size])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("norm", RADII)
def test_the_best_of_all_candidates_is_returned_and_found_at_counts_them_all(norm, shape):
    model, x = Recording(network(torch.Size(shape).numel())), images(4, shape)
    y = model(x).argmax(1)
    model.inputs.clear()
    attack = Square(type(make_threat(norm, 1))(RADII[norm]), queries=203, at_once=8)
    moved, found_at = attack.run(model, x, y)
    asked = [inputs.unflatten(0, (4, -1)) for inputs in model.inputs]
    assert sum(inputs.shape[1] for inputs in asked) == 203
    value = torch.full((4,), -torch.inf)
    first = torch.zeros(4, dtype=torch.int32)
    queries = 0
    for inputs in asked:
        queries += inputs.shape[1]
        for candidate in inputs.unbind(1):
            assert attack.threat.contains(candidate, x).all()
            value = torch.maximum(value, margin(model.body(candidate), y))
        first[(value > 0) & (first == 0)] = queries
    torch.testing.assert_close(margin(model.body(moved), y), value)
    assert found_at.tolist() == first.tolist()
    assert attack.threat.contains(moved, x).all()
    assert 0 <= float(moved.min()) <= float(moved.max()) <= 1


@pytest.mark.parametrize("at_once", [3, 8])
def test_linear_networks_break_just_beyond_the_boundary_with_many_candidates_at_once(at_once):
    model, x, y, distance = boundary("linf", (1, 6, 6))
    for ratio, breaks in ((1.02, True), (0.98, False)):
        attack = Square(type(make_threat("linf", 1))(ratio * distance, None), queries=1500, at_once=at_once)
        assert ((model(attack(model, x, y, goal="break")).argmax(1) != y) == breaks).all()


def test_a_network_that_detaches_its_input_is_attacked_all_the_same():
    body = network()
    x = images(12)
    y = body(x).argmax(1)

    def detached(inputs):
        return torch.from_numpy(body(inputs).detach().numpy())

    attack = Square(make_threat("linf", 0.2), queries=100)
    moved = attack(detached, x, y)
    assert (body(moved).argmax(1) != y).any()
    assert torch.equal(moved, attack(body, x, y))


def test_steps_in_the_way_of_gradients_are_no_defence():
    """A network that rounds its input has no gradient anywhere: PGD stays where it starts."""
    body = network()
    x = images(20)

    def rounding(inputs):
        return body((inputs * 32).round() / 32)

    y = rounding(x).argmax(1)
    threat = make_threat("linf", 0.12)
    broken = [
        int((rounding(ATTACKS.get(name)(threat=threat, **options)(rounding, x, y)).argmax(1) != y).sum())
        for name, options in (("pgd", {"random_start": False}), ("square", {"queries": 300}))
    ]
    assert broken[0] == 0
    assert broken[1] > 5


@pytest.mark.parametrize("at_once", [1, 8])
def test_logits_that_are_not_numbers_are_adversarial(at_once):
    x = images(3)
    y = network()(x).argmax(1)
    limit = x.sum((1, 2, 3)).max()
    body = network()

    def often_nan(inputs):
        return torch.where(inputs.sum((1, 2, 3))[:, None] > limit, torch.nan, body(inputs))

    attack = Square(make_threat("linf", 0.1), queries=100, at_once=at_once)
    moved = attack(often_nan, x, y)
    assert moved.isfinite().all()
    assert attack.threat.contains(moved, x).all()
    assert often_nan(x).isfinite().all()
    assert often_nan(moved).isnan().any()
    assert (predicted_class(often_nan(moved)) != y).sum() > (predicted_class(body(moved)) != y).sum()


@pytest.mark.parametrize("options", [{"queries": 0}, {"restarts": 0}, {"at_once": 0}, {"p_init": 0.0}, {"p_init": 1.5}])
def test_hyperparameters_that_cannot_be_meant_are_refused(options):
    with pytest.raises(UsageError):
        Square(make_threat("linf", 0.1), **options)


class Noisy(nn.Module):
    """Logits that are random numbers of the sample alone, which it draws as the networks of this project do."""

    def __init__(self):
        super().__init__()
        self.drawn = []

    def forward(self, x):
        assert belongs_to(x)
        self.drawn.append(normal_like(x.flatten(1)[:, :3]))
        return self.drawn[-1]


@pytest.mark.parametrize("at_once", [1, 4])
def test_noise_of_a_stochastic_network_belongs_to_the_candidate(at_once):
    """Candidates draw apart from each other, and the same alone as in a batch."""
    x, y = images(3), torch.tensor([0, 1, 2])
    drawn = {}
    for name, rows in (("all", slice(None)), ("last", slice(2, 3))):
        model = Noisy()
        attack = Square(make_threat("linf", 0.1), queries=9, at_once=at_once)
        attack.run(model, x[rows], y[rows], index=torch.arange(3)[rows])
        drawn[name] = model.drawn
    for together, alone in zip(drawn["all"], drawn["last"], strict=True):
        torch.testing.assert_close(together.unflatten(0, (3, -1))[2], alone)
    numbers = torch.cat(drawn["all"]).flatten()
    assert len(numbers.unique()) == len(numbers)
