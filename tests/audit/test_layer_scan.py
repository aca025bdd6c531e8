import numpy as np
import pytest
import torch
from torch import nn

from lsa_cli.attacks import ATTACKS, make_threat
from lsa_cli.auditing.layer_scan import LayerScan, MvlRule
from lsa_cli.auditing.observation import Observation, observe
from lsa_cli.measures import MEASURES
from lsa_cli.models.classifier import Classifier

NAMES = ["1", "4", "7"]


@pytest.fixture(scope="module")
def task():
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Flatten(),
        nn.Linear(128, 10), nn.ELU(), nn.Linear(10, 4),
    )  # fmt: skip
    classifier = Classifier(body, ((0.5,), (0.25,))).eval()
    x = torch.rand(23, 1, 8, 8)
    threat = make_threat("linf", 0.1)
    x_adv = ATTACKS.get("pgd")(threat=threat, steps=5)(classifier, x, torch.arange(23) % 4)
    return classifier, threat, x, x_adv


def look(task, rows, **options):
    classifier, threat, x, x_adv = task
    return observe(
        classifier,
        NAMES,
        MEASURES.get("relative-error"),
        threat,
        x[rows],
        x_adv[rows],
        torch.as_tensor(rows),
        **options,
    )


def scan_of(seen):
    return LayerScan.from_rows(NAMES, seen.layers, seen.yardstick, seen.input_error, seen.index)


def stored(task):
    """Relative errors (N, L) from representations kept whole, by plain hooks: the formula as it is written."""
    classifier, _, x, x_adv = task
    kept = []
    handles = [
        classifier.body[int(name)].register_forward_hook(lambda _m, _i, out: kept.append(out.detach().clone()))
        for name in NAMES
    ]
    with torch.no_grad():
        classifier(x)
        classifier(x_adv)
    for handle in handles:
        handle.remove()
    clean, moved = kept[: len(NAMES)], kept[len(NAMES) :]
    ratios = [
        (m - c).flatten(1).double().norm(dim=1) / c.flatten(1).double().norm(dim=1)
        for c, m in zip(clean, moved, strict=True)
    ]
    return torch.stack(ratios, 1).numpy()


def test_mean_mu_sigma_and_mvl_are_the_formula_on_stored_representations(task):
    errors = stored(task)
    scan = scan_of(look(task, np.arange(23)))
    np.testing.assert_allclose(scan.means(), errors.mean(0), rtol=1e-5)
    np.testing.assert_allclose(scan.deviations(), errors.std(0), rtol=1e-4)
    for eta in (-0.5, 0.0, 0.3, 5.0):
        found = scan.most_vulnerable(MvlRule(eta=eta))
        mu, sigma = errors.mean(), errors.std()
        assert found.mu == pytest.approx(mu, rel=1e-5)
        assert found.sigma == pytest.approx(sigma, rel=1e-4)
        expected = [i for i in np.argsort(-errors.mean(0)) if errors.mean(0)[i] - mu > eta * sigma]
        assert list(found.positions) == (expected or [int(errors.mean(0).argmax())])
        assert found.passed == bool(expected)


@pytest.mark.parametrize("size", [1, 4, 23])
def test_any_batch_split_and_order_gives_the_same_scan(task, size):
    whole = scan_of(look(task, np.arange(23)))
    order = np.random.default_rng(0).permutation(23)
    parts = [look(task, order[i : i + size]) for i in range(0, 23, size)]
    split = scan_of(Observation.concatenate(parts))
    np.testing.assert_allclose(split.values, whole.values, rtol=2e-5)
    np.testing.assert_allclose(split.yardstick, whole.yardstick, rtol=2e-4)


def test_the_order_of_batches_changes_no_bit(task):
    parts = [look(task, np.arange(i, min(i + 5, 23))) for i in range(0, 23, 5)]
    forward, backward = scan_of(Observation.concatenate(parts)), scan_of(Observation.concatenate(parts[::-1]))
    assert np.array_equal(forward.values, backward.values)
    rule = MvlRule()
    assert forward.most_vulnerable(rule) == backward.most_vulnerable(rule)
    assert all(
        np.array_equal(a, b) for a, b in zip(forward.bootstrap(rule, 0), backward.bootstrap(rule, 0), strict=True)
    )


def test_whole_batch_is_the_single_ratio_of_the_authors_package(task):
    classifier, _, x, x_adv = task
    seen = look(task, np.arange(23), whole_batch=True)
    with torch.no_grad():
        clean, moved = classifier.body[:2](classifier.normalize(x)), classifier.body[:2](classifier.normalize(x_adv))
    assert seen.layers.shape == (1, 3)
    assert seen.layers[0, 0] == pytest.approx(float((moved - clean).norm() / clean.norm()), rel=1e-5)


@pytest.mark.parametrize("offset", [0.0, 1.0, 1e3])
def test_a_small_spread_around_a_large_mean_keeps_its_digits(offset):
    """Standard deviations of 1e-6 and less beside means up to 1000: as numpy has them in two passes."""
    values = offset + 1e-6 * np.random.default_rng(0).standard_normal((50, 3))
    values[3, 1] = np.nan
    made = scan(values)
    np.testing.assert_allclose(made.deviations(), np.nanstd(values, 0), rtol=1e-5)
    for layers in ("samples", "layers"):
        found = made.most_vulnerable(MvlRule(sigma=layers))
        over = values if layers == "samples" else np.nanmean(values, 0)
        assert found.mu == pytest.approx(np.nanmean(over), rel=1e-12)
        assert found.sigma == pytest.approx(np.nanstd(over), rel=1e-5)
    low, high, _ = made.bootstrap(MvlRule(), 0)
    assert (low <= made.means()).all()
    assert (made.means() <= high).all()
    assert (high - low < 1e-6).all()


def scan(values):
    values = np.asarray(values, dtype=float)
    count = values.shape[1]
    return LayerScan(tuple("abcdef"[:count]), values, np.full_like(values, np.nan), np.ones(len(values)))


def test_no_layer_above_the_threshold_names_the_largest_and_says_so():
    found = scan([[1.0, 1.1, 0.9]] * 4).most_vulnerable(MvlRule(eta=3))
    assert found.positions == (1,)
    assert not found.passed


def test_top_k_and_layers_only_sigma():
    values = [[1.0, 3.0, 2.0], [1.2, 3.2, 2.2]]
    assert scan(values).most_vulnerable(MvlRule(top_k=2)).positions == (1, 2)
    found = scan(values).most_vulnerable(MvlRule(eta=0.8, sigma="layers"))
    assert found.sigma == pytest.approx(np.std([1.1, 3.1, 2.1]))
    assert found.positions == (1,)


def test_undefined_measures_are_left_out_and_counted():
    values = [[1.0, np.nan], [3.0, np.nan], [2.0, 5.0]]
    undefined = scan(values)
    assert undefined.means().tolist() == [2.0, 5.0]
    assert undefined.undefined().tolist() == [0, 2]
    found = undefined.most_vulnerable(MvlRule(eta=0.5))
    assert found.mu == pytest.approx(11 / 4)
    assert found.positions == (1,)
    low, _, stability = undefined.bootstrap(MvlRule(eta=0.5), 0)
    assert np.isfinite(low).all()
    assert 0 < stability[1] < 1  # in some resamples the only sample that has a measure is missing


def test_a_layer_without_any_measure_is_never_most_vulnerable():
    blind = scan([[1.0, np.nan], [2.0, np.nan]])
    assert blind.most_vulnerable(MvlRule()).positions == (0,)
    low, _, stability = blind.bootstrap(MvlRule(), 0)
    assert np.isnan(low[1])
    assert stability[1] == 0


def test_the_bootstrap_interval_covers_the_mean_as_often_as_it_says():
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        low, high, _ = scan(generator.exponential(1.0, (60, 1))).bootstrap(MvlRule(), 0)
        hits += low[0] <= 1.0 <= high[0]
    assert 0.88 <= hits / 200 <= 0.99


def test_stability_is_one_for_a_clear_layer_and_split_between_equal_ones():
    generator = np.random.default_rng(2)
    clear = scan(np.stack([generator.normal(5, 0.1, 50), generator.normal(1, 0.1, 50)], 1))
    assert clear.bootstrap(MvlRule(top_k=1), 0)[2].tolist() == [1, 0]
    equal = scan(generator.normal(1, 0.1, (50, 2)))
    stability = equal.bootstrap(MvlRule(top_k=1), 0)[2]
    assert stability.sum() == pytest.approx(1)
    assert 0.02 < stability[0] < 0.98


def test_gain_and_amplification():
    values, yardstick = np.array([[2.0, 6.0]] * 3), np.array([[1.0, 2.0]] * 3)
    both = LayerScan(("a", "b"), values, yardstick, np.full(3, 4.0))
    assert both.gains().tolist() == [0.5, 3.0]
    assert both.amplification().tolist() == [2.0, 3.0]


@pytest.mark.parametrize("rule", [MvlRule(), MvlRule(sigma="layers"), MvlRule(top_k=2)])
def test_a_layer_that_does_not_move_is_not_vulnerable(rule):
    def scan(values):
        return LayerScan(("a", "b"), values, np.ones_like(values), np.ones(len(values)))

    still = scan(np.zeros((20, 2)))
    assert still.most_vulnerable(rule).positions == ()
    assert (still.bootstrap(rule, 0)[2] == 0).all()
    one_moves = scan(np.stack([np.zeros(20), np.linspace(0.1, 0.7, 20)], axis=1))
    assert one_moves.most_vulnerable(rule).positions == (1,)
    assert one_moves.bootstrap(rule, 0)[2].tolist() == [0, 1]
