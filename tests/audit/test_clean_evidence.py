"""Clean accuracy as evidence: a network that is used in another way than it was trained is doubted, an honest one is not."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from lsa_cli import audit
from lsa_cli.auditing.class_diagnosis import rate
from lsa_cli.auditing.evidence import usage
from lsa_cli.models.architectures import build_architecture
from lsa_cli.models.classifier import parse_normalize
from lsa_cli.models.normalizations import is_same, usual_normalizations
from lsa_cli.report.row import Rate

NAMES = [str(number) for number in range(12)]


def codes(*checks):
    return [check.finding.code for check in checks if check.finding]


# ---- the assignment ------------------------------------------------------------------------------------


def test_the_assignment_is_the_best_of_all():
    generator = np.random.default_rng(0)
    for _ in range(300):
        rows = int(generator.integers(1, 6))
        columns = int(generator.integers(rows, 7))
        cost = generator.integers(-5, 6, (rows, columns))
        found = usage.assign(cost)
        assert len(set(found.tolist())) == rows
        orders = itertools.permutations(range(columns), rows)
        assert cost[np.arange(rows), found].sum() == min(sum(cost[r, c] for r, c in enumerate(o)) for o in orders)


def test_of_equal_orders_the_one_that_stands_is_kept():
    y = np.array([0, 0, 1, 1, 3])
    assert usage.best_order(y, np.array([0, 1, 0, 1, -1]), 5).tolist() == [0, 1, 2, 3, 4]
    assert usage.best_order(y, np.full(5, -1), 5).tolist() == [0, 1, 2, 3, 4]
    assert usage.best_order(y, np.array([1, 1, 0, 0, 3]), 5).tolist() == [1, 0, 2, 3, 4]


# ---- classes -------------------------------------------------------------------------------------------


def test_classes_in_the_order_of_text_are_found_and_named():
    y = np.repeat(np.arange(12), 20)
    as_text = np.array([sorted(NAMES).index(name) for name in NAMES])
    checked = usage.class_order(y, as_text[y], NAMES)
    assert codes(checked) == ["class-order"]
    assert "40 of 240" in checked.finding.message
    assert "order=text" in checked.finding.advice
    assert codes(usage.class_order(y, y, NAMES)) == []


def test_two_exchanged_classes_among_ten_are_found_in_a_hundred_samples():
    y = np.arange(100) % 10
    swapped = np.where(y == 3, 5, np.where(y == 5, 3, y))
    checked = usage.class_order(y, swapped, NAMES[:10])
    assert codes(checked) == ["class-order"]
    assert checked.finding.advice.endswith("--match-classes 0,1,2,5,4,3,6,7,8,9")


def test_the_order_is_that_of_the_classes_of_the_data():
    """The data number their classes from the last one, and the checkpoint's names turn that."""
    y = np.arange(300) % 3
    checked = usage.class_order(y, np.array([1, 2, 0])[y], NAMES[:3], in_data=2 - y)
    assert checked.finding.advice.endswith("--match-classes 0,2,1")


def test_no_order_is_proposed_where_a_class_has_no_samples():
    y = np.arange(300) % 3 + 1
    checked = usage.class_order(y, (y + 1) % 4, NAMES[:4])
    assert codes(checked) == ["class-order"]
    assert "," not in checked.finding.advice.partition("--match-classes")[2].partition("with")[0]


def test_labels_that_count_from_one_are_found():
    y = np.arange(300) % 10
    checked = usage.class_order(y, (y + 1) % 10, NAMES[:10])
    assert codes(checked) == ["class-order"]
    assert "--match-classes" in checked.finding.advice


@pytest.mark.parametrize("classes", [2, 3, 10, 100])
def test_networks_at_chance_have_no_better_order(classes):
    """Guesses, even and skewed, on even and skewed data: of 200 tries at most one may be doubted."""
    generator = np.random.default_rng(classes)
    doubted = 0
    for number in range(200):
        share = generator.dirichlet(np.ones(classes)) if number % 2 else np.full(classes, 1 / classes)
        guess = generator.dirichlet(np.ones(classes)) if number % 4 > 1 else np.full(classes, 1 / classes)
        n = int(generator.choice([5, 40, 300]))
        y, predicted = generator.choice(classes, n, p=share), generator.choice(classes, n, p=guess)
        doubted += bool(codes(usage.class_order(y, predicted, [str(k) for k in range(classes)])))
    assert doubted <= 1


def test_untrained_networks_have_no_better_order():
    """Their outputs follow the classes a little, by accident: that is no order of classes."""
    images = np.load("sample_models/mnist.npz")
    x = torch.from_numpy(images["x_test"][:600]).float().reshape(-1, 1, 28, 28) / 255
    y = images["y_test"][:600].astype(np.int64)
    for seed in range(8):
        torch.manual_seed(seed)
        body = build_architecture("lsa:mnist-cnn", {}).eval()
        with torch.no_grad():
            predicted = body(x).argmax(1).numpy()
        assert codes(usage.class_order(y, predicted, NAMES[:10]), usage.lost_classes(y, predicted, NAMES[:10])) == []


def test_a_network_that_names_one_class_only_is_not_in_another_order():
    y = np.array([1] * 90 + [0] * 10)
    assert codes(usage.class_order(y, np.zeros(100, dtype=int), NAMES[:2])) == []
    assert codes(usage.lost_classes(np.arange(90) % 3, np.zeros(90, dtype=int), NAMES[:3])) == []


def test_a_class_that_is_hardly_ever_right_is_found():
    generator = np.random.default_rng(0)
    y = np.arange(400) % 10
    predicted = np.where(generator.random(400) < 0.9, y, (y + 3) % 10)
    assert codes(usage.lost_classes(y, predicted, NAMES[:10])) == []
    without = np.where(y == 4, 9, predicted)
    assert codes(usage.lost_classes(y, without, NAMES[:10])) == ["class-without-accuracy"]
    hard = np.where((y == 4) & (generator.random(400) < 0.6), 9, predicted)
    assert codes(usage.lost_classes(y, hard, NAMES[:10])) == []
    few = np.concatenate([np.flatnonzero(y != 4), np.flatnonzero(y == 4)[:2]])
    assert codes(usage.lost_classes(y[few], without[few], NAMES[:10])) == []  # two samples say nothing


# ---- the claim -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("high", "doubted"), [(0.72, True), (0.7399, False), (0.8, False)])
def test_a_claim_is_missed_where_the_interval_ends_a_point_below_it(high, doubted):
    rate = Rate(count=66, n=100, value=0.66, low=0.6, high=high)
    assert bool(codes(usage.claim(rate, (0.74, "val_acc")))) == doubted
    assert codes(usage.claim(rate, None)) == []


# ---- normalisation -------------------------------------------------------------------------------------


def test_usual_normalisations_are_asked_for_by_their_names():
    for channels, preset in ((1, "mnist"), (3, "cifar10"), (4, None)):
        usual = usual_normalizations(channels)
        assert {"--normalize none", "--normalize 0.5/0.5", "--normalize none --input-range 0,255"} <= set(usual)
        assert preset is None or f"--normalize {preset}" in usual
        assert not any(is_same(a, b, channels) for a, b in itertools.combinations(usual.values(), 2))
    assert is_same(parse_normalize("0.5/0.25"), ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)), 3)


def test_only_a_gain_beyond_noise_counts():
    right = np.arange(400) >= 40  # 40 wrong

    def under(gained, lost):
        return lambda name, rows: np.where(rows < 40, rows < gained, rows >= 40 + lost)

    assert codes(usage.normalization(right, ["a"], under(30, 0), "b", 0.1)) == ["another-normalization"]
    assert codes(usage.normalization(right, ["a"], under(30, 20), "b", 0.1)) == []
    assert codes(usage.normalization(right, ["a"], under(8, 0), "b", 0.1)) == []
    asked = []
    usage.normalization(right, ["a"], lambda name, rows: asked.append(len(rows)) or np.zeros(len(rows), bool), "b", 0.1)
    assert asked == [40]  # where nothing is gained, the samples that are right are left alone


def test_an_accuracy_no_better_than_guessing_names_no_normalisation():
    """Two classes are swapped, so 3 of 100 are right; inputs that tell nothing raise that to about half."""
    right = np.arange(100) < 3

    def under(others):
        return lambda name, rows: rows < 3 + others

    assert codes(usage.normalization(right, ["a"], under(45), "b", 0.5)) == []
    assert codes(usage.normalization(right, ["a"], under(70), "b", 0.5)) == ["another-normalization"]


def test_a_normalisation_is_no_second_cause_of_what_an_order_of_classes_explains():
    y = np.arange(100) % 2
    of_order = usage.class_order(y, np.where(np.arange(100) < 3, y, 1 - y), NAMES[:2])
    for others, found in ((70, []), (97, ["another-normalization"])):  # 73 and 100 of 100, in another order 97
        of_inputs = usage.normalization(np.arange(100) < 3, ["a"], lambda _, rows, n=others: rows < 3 + n, "b", 0.5)
        assert codes(of_order, usage.without_second_cause(of_inputs, of_order)) == ["class-order", *found]


@pytest.fixture(scope="module")
def trained():
    """A network trained on images that are normalised with 0.5/0.5, and its images."""
    torch.manual_seed(0)
    y = torch.arange(300) % 3
    x = (0.15 * torch.rand(300, 1, 6, 6) + 0.35 + 0.1 * y[:, None, None, None]).clamp(0, 1)
    body = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch.optim.Adam(body.parameters(), 0.02)
    for _ in range(80):
        optimizer.zero_grad()
        nn.functional.cross_entropy(body((x - 0.5) / 0.5), y).backward()
        optimizer.step()
    return body, x, y


def test_an_audit_with_another_normalisation_is_doubted_first_of_all(trained):
    body, x, y = trained
    options = {"eps": 0.02, "noise": "none", "threads": 1}
    wrong = audit(body, data=(x, y), attack="fgsm", normalize="none", **options)
    assert wrong.evidence.verdict == "doubtful"
    assert "another-normalization" in [finding.code for finding in wrong.evidence.findings]
    before = audit(body, data=(x, y), attack="none", normalize="none", **options)
    assert before.evidence.findings[0].advice == "audit with --normalize 0.5/0.5"
    assert before.verdict.robust is None
    right = audit(body, data=(x, y), attack="pgd", normalize="0.5/0.5", **options)
    assert right.evidence.verdict == "trusted", right.evidence.findings
    assert "usual normalisations" in [check.name for check in right.evidence.checks]


def test_few_or_short_attacks_are_a_quick_look(trained):
    body, x, y = trained
    options = {"data": (x, y), "eps": 0.02, "noise": "none", "normalize": "0.5/0.5", "threads": 1}
    for more in ({"attack": "fgsm"}, {"attack": ["fgsm", "pgd:steps=2"]}, {"preset": "quick"}):
        report = audit(body, gate={"evidence.doubtful": 0}, **options, **more)
        assert report.evidence.verdict == "quick look"
        assert "quick look" in report.gates[0].message
        assert report.gates[0].passed
    assert audit(body, **options, attack=["fgsm", "pgd"]).evidence.verdict == "trusted"


@pytest.mark.parametrize(("samples", "verdict"), [(1, "quick look"), (9, "quick look"), (10, "trusted")])
def test_a_few_samples_are_a_quick_look(trained, samples, verdict):
    body, x, y = trained
    options = {"eps": 0.02, "noise": "none", "normalize": "0.5/0.5", "threads": 1, "limit": samples}
    assert audit(body, data=(x, y), **options).evidence.verdict == verdict


def test_the_verdict_says_in_words_what_was_shown(trained):
    body, x, y = trained
    options = {"data": (x, y), "noise": "none", "normalize": "0.5/0.5", "threads": 1}
    meanings = {eps: audit(body, **options, eps=eps, attack="pgd").verdict.meaning for eps in ("8/255", "0.5")}
    assert meanings["0.5"] == "every image can be turned within linf 0.5 (all 300 that are classified correctly)"
    some = audit(body, **options, eps="8/255", attack="pgd").verdict
    turned = some.clean.count - some.robust.count
    assert 0 < turned < 300
    assert meanings["8/255"].startswith(f"at least {turned} of 300 images that are classified correctly can be turned")
    assert "within linf 8/255" in meanings["8/255"]


def test_tables_of_numbers_have_no_usual_normalisation():
    x, body = torch.rand(200, 2, generator=torch.Generator().manual_seed(0)), nn.Linear(2, 2)
    with torch.no_grad():
        body.weight.copy_(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
        body.bias.copy_(torch.tensor([0.0, -0.4]))  # right for three of four; with 0.5/0.5 for nine of ten
    data = (x, (x[:, 0] > 0.5).long())
    report = audit(body, data=data, attack="pgd", layers="none", eps=0.01, noise="none", threads=1)
    assert report.verdict.clean.value < 0.9
    assert "usual normalisations" not in [check.name for check in report.evidence.checks]


# ---- chance --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("right", "n", "classes", "found"),
    [
        (2, 65, 10, True),
        (0, 65, 10, True),
        (14, 100, 10, True),  # 10% is in [8.5, 22.1]
        (18, 100, 10, False),
        (100, 100, 2, False),
        (60, 100, 2, False),
        (58, 100, 2, True),
        (0, 19, 10, False),  # too few samples to say so
    ],
)
def test_a_network_that_only_guesses_is_doubted(right, n, classes, found):
    checked = usage.near_chance(rate(np.arange(n) < right), classes)
    assert codes(checked) == ["clean-accuracy-near-chance"] * found
