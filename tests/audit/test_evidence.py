"""Networks built to fool an attack are doubted, honest ones are not."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lsa_cli.attacks import ATTACKS, make_threat
from lsa_cli.auditing.class_diagnosis import ClassDiagnosis
from lsa_cli.auditing.evidence.attacks import loss_along_steps, noise_of_equal_size, rounding
from lsa_cli.auditing.evidence.compare import Measured, compare
from lsa_cli.auditing.evidence.decision import ALPHA, Checked, evidence_of, exceeds, verdict
from lsa_cli.auditing.evidence.examine import examine, probe_passes, probe_size
from lsa_cli.auditing.evidence.network import gradients, slopes
from lsa_cli.auditing.evidence.preflight import (
    LogitsSummary,
    refuse_useless_logits,
    trained_on_the_same,
    useless_logits,
)
from lsa_cli.auditing.evidence.probe import Probe
from lsa_cli.auditing.evidence.searches import smoothed_surrogate
from lsa_cli.auditing.network import open_network
from lsa_cli.errors import NumericalError
from lsa_cli.models.classifier import Classifier
from lsa_cli.report.schema import Evidence, Finding
from lsa_cli.settings import settings_from
from lsa_cli.stats import binomial_tail

# ---- the rule ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("allowed", [0.01, 0.02, 0.05, 0.1])
def test_what_honest_networks_may_show_is_doubted_less_often_than_alpha(allowed):
    for n in (1, 4, 12, 48, 128, 400):
        first = next((count for count in range(n + 1) if exceeds(count, n, allowed)), n + 1)
        assert binomial_tail(first, n, allowed) < ALPHA <= binomial_tail(first - 1, n, allowed)
    assert not exceeds(0, 0, allowed)
    draws = np.random.default_rng(0).binomial(48, allowed, 20_000)
    decided = np.array([exceeds(count, 48, allowed) for count in range(49)])
    assert decided[draws].mean() < 2 * ALPHA


def test_the_counts_that_the_docstring_names():
    firsts = [next(k for k in range(n) if exceeds(k, n, 0.02)) for n in (12, 48, 128, 1000)]
    assert firsts == [4, 6, 10, 36]


def test_the_verdict_is_the_worst_level():
    doubtful = Finding(code="a", level="doubtful", message="m", advice="a")
    invalid = doubtful.model_copy(update={"level": "invalid", "code": "b"})
    assert verdict([]) == "trusted"
    assert verdict([doubtful]) == "doubtful"
    evidence = evidence_of([Checked("x", 3, {"share": math.nan}, doubtful), Checked("y", 1, {}, invalid)])
    assert evidence.verdict == "invalid"
    assert [finding.code for finding in evidence.findings] == ["b", "a"]
    assert evidence.checks[0].saw == {"share": None}
    assert evidence.checks[0].findings == ["a"]
    assert Evidence.model_validate_json(evidence.model_dump_json()) == evidence


def test_a_number_that_is_nearly_zero_is_not_doubted_because_it_may_be_too_high():
    def found(robust):
        codes = ("misaligned-gradient", "class-order", "batch-dependent")
        checked = [
            Checked(code, 9, {}, Finding(code=code, level="doubtful", message="m", advice="a")) for code in codes
        ]
        return evidence_of(checked, robust=robust)

    assert [finding.code for finding in found(0.02).findings] == [
        "misaligned-gradient",
        "class-order",
        "batch-dependent",
    ]
    assert [finding.code for finding in found(0.0).findings] == ["class-order", "batch-dependent"]
    assert found(0.0).statements == [
        "misaligned-gradient is no reason for doubt here: a robust accuracy of 0.0% is too high by a point at most"
    ]


# ---- networks with a defect ----------------------------------------------------------------------------


class Apply(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class WinnersTakeAll(nn.Module):
    """k-WTA (arXiv 1905.10510): the largest activations pass, the others are zero, so the network jumps everywhere."""

    def __init__(self, share):
        super().__init__()
        self.share = share

    def forward(self, x):
        least = x.topk(max(1, int(self.share * x.shape[1])), 1).values[:, -1:]
        return torch.where(x >= least, x, 0.0)


class AnotherGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return torch.randn(gradient.shape, generator=torch.Generator().manual_seed(0))


class Stubborn(nn.Dropout):
    """Dropout that no eval() reaches."""

    def train(self, mode=True):
        return super().train(True)


def mlp(activation=nn.ReLU, width=64):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, width), activation(), nn.Linear(width, width), activation(), nn.Linear(width, 10)
    )


def fit(body, x, y, epochs=25, eps=0.0, loss=F.cross_entropy):
    """Adam; with eps, on PGD examples. y: labels, or rows of whatever the loss compares logits with."""
    optimizer = torch.optim.Adam(body.parameters(), 3e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(100):
            inputs = x[rows]
            if eps:
                attack = ATTACKS.get("pgd")(threat=make_threat("linf", eps), steps=4)
                inputs = attack(body.eval(), inputs, y[rows])
            optimizer.zero_grad()
            loss(body.train()(inputs), y[rows]).backward()
            optimizer.step()
    optimizer.zero_grad()
    return body.eval()


@pytest.fixture(scope="module")
def digits():
    data = pytest.importorskip("sklearn.datasets").load_digits()
    return torch.tensor(data.images / 16, dtype=torch.float32)[:, None], torch.tensor(data.target)


@pytest.fixture(scope="module")
def base(digits):
    torch.manual_seed(0)
    x, y = digits
    return fit(mlp(), x[:1200], y[:1200])


@pytest.fixture(scope="module")
def robust(digits):
    torch.manual_seed(0)
    x, y = digits
    return fit(mlp(), x[:1200], y[:1200], eps=0.15)


@pytest.fixture(scope="module")
def distilled(digits):
    """Defensive distillation (arXiv 1511.04508), temperature 40: logits are 40 times as large as need be."""
    torch.manual_seed(0)
    x, y = digits[0][:1200], digits[1][:1200]
    teacher = fit(mlp(), x, y, loss=lambda logits, y: F.cross_entropy(logits / 40, y))
    with torch.no_grad():
        soft = (teacher(x) / 40).softmax(1)
    return fit(mlp(), x, soft, epochs=40, loss=lambda logits, soft: F.cross_entropy(logits / 40, soft))


def probe_of(body, digits, eps=0.15, count=128, norm="linf", **options):
    x, y = digits
    index = torch.arange(1300, 1300 + count)
    return Probe(Classifier(body).eval(), x[index], y[index], index, make_threat(norm, eps), **options)


def codes(checked):
    return [check.finding.code for check in checked if check.finding]


class Detached(nn.Module):
    """The network proper sees a detached input; what autograd sees, if anything, does next to nothing."""

    def __init__(self, body, side_door):
        super().__init__()
        self.body, self.side_door = body, side_door

    def forward(self, x):
        return (
            self.body(x.detach()) + self.side_door * x.flatten(1)[:, :10] if self.side_door else self.body(x.detach())
        )


DEFECTS = {
    "rounded inputs": (lambda b: nn.Sequential(Apply(lambda x: (8 * x).round() / 8), b), ["vanishing-gradient"]),
    "rounded features": (
        lambda b: nn.Sequential(b[:3], Apply(lambda x: (8 * x).round() / 8), b[3:]),
        ["vanishing-gradient", "random-search-wins"],
    ),
    "softmax that saturates, rescaled": (
        lambda b: nn.Sequential(b, Apply(lambda z: 10 * (50 * z).softmax(1))),
        ["vanishing-gradient", "full-range-survived", "loss-does-not-rise"],
    ),
    "clipped probabilities under a logarithm": (
        lambda b: nn.Sequential(b, Apply(lambda z: (10 * z).softmax(1).clamp(1e-7, 1 - 1e-7).log())),
        ["vanishing-gradient", "full-range-survived"],
    ),
    "saturating logits": (lambda b: nn.Sequential(b, Apply(torch.tanh)), ["loss-does-not-rise"]),
    "an offset that eats the digits": (lambda b: nn.Sequential(b, Apply(lambda z: z + 3e7)), ["vanishing-gradient"]),
    "ripples on the input": (
        lambda b: nn.Sequential(Apply(lambda x: x + 0.02 * torch.sin(400 * x)), b),
        ["random-search-wins"],
    ),
    "ripples on features": (
        lambda b: nn.Sequential(b[:3], Apply(lambda x: x + 0.2 * torch.sin(300 * x)), b[3:]),
        ["rugged-loss"],
    ),
    "a detached path": (
        lambda b: Detached(b, 0.01),
        ["wrong-gradient", "loss-does-not-rise", "full-range-survived", "random-search-wins"],
    ),
    "a backward of another function": (
        lambda b: nn.Sequential(Apply(AnotherGradient.apply), b),
        ["wrong-gradient", "loss-does-not-rise", "random-search-wins"],
    ),
    "no gradient at all": (lambda b: Detached(b, 0), ["vanishing-gradient", "random-search-wins"]),
    "dropout by hand": (
        lambda b: nn.Sequential(b[:3], Apply(lambda x: F.dropout(x, 0.2, training=True)), b[3:]),
        ["random-forward"],
    ),
    "dropout that stays": (lambda b: nn.Sequential(b[:3], Stubborn(0.2), b[3:]), ["train-mode", "random-forward"]),
    "noise on the input": (
        lambda b: nn.Sequential(Apply(lambda x: x + 0.01 * torch.randn_like(x)), b),
        ["random-forward"],
    ),
    "centred over the batch": (
        lambda b: nn.Sequential(b, Apply(lambda z: z - 0.3 * z.mean(0, keepdim=True))),
        ["batch-dependent"],
    ),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_found_and_named(base, digits, name):
    build, expected = DEFECTS[name]
    checked = examine(probe_of(build(base), digits, 0.1))
    assert set(expected) <= set(codes(checked))
    assert evidence_of(checked).verdict == "doubtful"
    assert all(check.finding.message and check.finding.advice for check in checked if check.finding)


@pytest.mark.parametrize(
    "change",
    [
        lambda b: b,
        lambda b: nn.Sequential(b, Apply(lambda z: 1e6 * z)),
        lambda b: nn.Sequential(b, Apply(lambda z: 1e30 * z)),
        lambda b: nn.Sequential(b, Apply(lambda z: z + 1e4)),
        lambda b: nn.Sequential(b, Apply(lambda z: z.log_softmax(1))),
        # Straight through a rounding whose levels are finer than the budget: the attack is not fooled.
        lambda b: nn.Sequential(Apply(lambda x: x + ((8 * x).round() / 8 - x).detach()), b),
    ],
)
@pytest.mark.parametrize("eps", [0.1, 0.15])
def test_what_does_not_fool_the_attacks_is_no_defect(base, digits, change, eps):
    assert codes(examine(probe_of(change(base), digits, eps))) == []


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.05), ("linf", 0.15), ("linf", 0.3), ("l2", 0.8), ("l1", 3.0)])
def test_adversarially_trained_is_no_defect(robust, digits, norm, eps):
    checked = examine(probe_of(robust, digits, eps, norm=norm))
    assert codes(checked) == []
    assert ("random search" in [check.name for check in checked]) == (norm != "l1")


def test_distilled_logits_are_large_and_no_defect_but_their_probabilities_are(distilled, digits):
    assert codes(examine(probe_of(distilled, digits))) == []
    for head in (lambda z: 20 * z.softmax(1), lambda z: (z.softmax(1) + 1e-12).log()):
        found = codes(examine(probe_of(nn.Sequential(distilled, Apply(head)), digits)))
        assert {"vanishing-gradient", "loss-does-not-rise", "full-range-survived"} <= set(found)
        assert "smoothed-surrogate-wins" in found


@pytest.mark.parametrize("factor", [1e-6, 1e-3, 1 / 50, 1e6])
def test_the_scale_of_the_logits_is_no_defect(base, digits, factor):
    assert codes(examine(probe_of(nn.Sequential(base, Apply(lambda z: factor * z)), digits))) == []


@pytest.mark.parametrize(("attack", "found"), [("fgsm", True), ("pgd", True), ("apgd-t", False)])
def test_an_audit_by_too_weak_an_attack_is_doubted(robust, digits, attack, found):
    """FGSM and PGD leave 42% and 36% of the samples of this network at this radius, APGD-T 28%."""
    probe = probe_of(robust, digits, 0.2)
    x_adv = probe.run(ATTACKS.get(attack)(probe.threat))
    check = next(c for c in examine(probe, broken=probe.margin(x_adv) > 0) if c.name == "stronger attack")
    assert codes([check]) == ["stronger-attack-wins"] * found
    assert (check.saw["broken"] > 0.1 * check.n) == found


def test_a_shattered_loss_is_smoothed_out(base, digits):
    body = nn.Sequential(Apply(lambda x: x + 0.02 * torch.sin(400 * x)), base)
    assert {"loss-does-not-rise", "smoothed-surrogate-wins"} & set(codes(examine(probe_of(body, digits, 0.15))))
    probe = probe_of(body, digits, 0.15, count=400)
    left = probe.select(probe.margin(probe.x) <= 0)
    left = left.select(left.margin(loss_along_steps(left)[0]) <= 0)
    left = left.unbroken_by(ATTACKS.get("pgd")(threat=left.threat, steps=10))
    check = smoothed_surrogate(left, len(probe))
    assert check.saw["broken"] > 0.1 * check.n > 10
    assert check.finding


@pytest.mark.parametrize("share", [0.05, 0.1])
def test_winners_take_all_is_found_by_what_needs_no_gradient(digits, share):
    torch.manual_seed(0)
    x, y = digits
    body = fit(mlp(lambda: WinnersTakeAll(share), 128), x[:1200], y[:1200])
    for eps in (0.12, 0.15, 0.2):
        assert "random-search-wins" in codes(examine(probe_of(body, digits, eps)))


def test_batch_statistics_are_found_though_a_single_sample_cannot_even_run(digits):
    torch.manual_seed(0)
    x, y = digits
    norm = nn.BatchNorm1d(32, track_running_stats=False)
    body = fit(nn.Sequential(nn.Flatten(), nn.Linear(64, 32), norm, nn.ReLU(), nn.Linear(32, 10)), x[:600], y[:600], 5)
    checked = examine(probe_of(body, digits))
    assert codes(checked) == ["train-mode", "batch-dependent"]
    assert "body.2" in checked[0].finding.message
    assert evidence_of(checked).checks[-1].saw["largest difference"] is None


def test_an_extra_softmax_makes_the_number_meaningless(base, digits):
    with torch.no_grad():
        logits = base(digits[0]).numpy()
        soft = base(digits[0]).softmax(1).numpy()
    assert useless_logits(LogitsSummary.of(logits)).finding is None
    finding = useless_logits(LogitsSummary.of(soft)).finding
    assert (finding.code, finding.level) == ("probabilities", "invalid")
    assert useless_logits(LogitsSummary.of(soft), raw_probabilities=True).finding is None
    for broken, code in ((logits * np.nan, "logits-not-finite"), (logits * 0, "constant-logits")):
        assert useless_logits(LogitsSummary.of(broken)).finding.code == code
        assert evidence_of([useless_logits(LogitsSummary.of(broken))]).verdict == "invalid"
    with pytest.raises(NumericalError, match=r"^net: the network returns probabilities, .*; remove the final softmax"):
        refuse_useless_logits(LogitsSummary.of(soft), False, "net")


# ---- single checks -------------------------------------------------------------------------------------


def test_pictures_cannot_hold_half_a_level():
    """A two-class network whose boundary lies 0.001 from every picture: an attack crosses it, no picture does."""
    x = torch.full((30, 1, 4, 4), 128 / 255)

    def network(x):
        brightness = x.flatten(1).mean(1)
        return torch.stack([torch.zeros_like(brightness), 128 / 255 + 0.001 - brightness], 1)

    probe = Probe(network, x, torch.ones(30, dtype=torch.long), torch.arange(30), make_threat("linf", 0.0015))
    check = rounding(probe, x + 0.0015, 30)
    assert check.n == 30
    assert check.finding.code == "lost-in-8-bits"
    assert check.saw["robust accuracy"] == 0
    assert check.saw["robust accuracy after rounding"] == 1
    assert rounding(probe, x + 0.01, 30).finding is None


def test_an_attack_that_is_noise_is_as_strong_as_noise(base, digits):
    probe = probe_of(base, digits, 0.3)
    right = probe.select(probe.margin(probe.x) <= 0)
    generator = torch.Generator().manual_seed(1)
    signs = (torch.rand(right.x.shape, generator=generator) - 0.5).sign()
    blind = noise_of_equal_size(right, right.threat.project(right.x + 0.3 * signs, right.x))
    assert blind.finding.code == "noise-as-strong"
    pgd = ATTACKS.get("pgd")(threat=right.threat, steps=10)
    assert noise_of_equal_size(right, right.run(pgd)).finding is None


def test_gradients_that_lead_nowhere_are_counted_sample_by_sample(base, digits):
    def half_rounded(x):
        bright = x.flatten(1).mean(1) > 0.3
        return base(torch.where(bright[:, None, None, None], (8 * x).round() / 8, x))

    probe = probe_of(Apply(half_rounded), digits)
    bright = int((probe.x.flatten(1).mean(1) > 0.3).sum())
    check = gradients(probe)
    assert check.saw["zero"] == bright > 10
    assert check.finding
    few = probe.select(torch.argsort(probe.x.flatten(1).mean(1))[: len(probe) - bright + 1])
    assert gradients(few).saw["zero"] == 1
    assert gradients(few).finding is None
    assert slopes(probe).n == len(probe) - bright


def test_what_the_audit_broke_is_not_searched_again(base, digits):
    probe = probe_of(nn.Sequential(Apply(lambda x: (8 * x).round() / 8), base), digits)
    assert "random search" in [check.name for check in examine(probe)]
    broken = torch.ones(len(probe), dtype=torch.bool)
    assert "random search" not in [check.name for check in examine(probe, broken=broken)]


def test_the_network_and_the_generator_are_left_as_they_were(base, digits):
    probe = probe_of(base, digits, count=20)
    probe.model.train()
    state = {name: tensor.clone() for name, tensor in probe.model.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    examine(probe)
    assert torch.equal(torch.rand(3), expected)
    assert all(module.training for module in probe.model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in probe.model.parameters())
    assert all(torch.equal(tensor, state[name]) for name, tensor in probe.model.state_dict().items())
    probe.model.eval()


def test_batch_size_and_repetition_change_no_count(robust, digits):
    def counts(size):
        evidence = evidence_of(examine(probe_of(robust, digits, count=50, batch_size=size)))
        return [(row.name, row.n) for row in evidence.checks], evidence.findings

    assert counts(50) == counts(50) == counts(16)


def test_eps_zero_and_a_probe_without_a_right_sample_are_no_reason_for_doubt(base, digits):
    assert codes(examine(probe_of(base, digits, eps=0.0, count=10))) == []
    probe = probe_of(base, digits, count=10)
    wrong = dataclasses.replace(probe, y=(probe.clean.argmax(1) + 1) % 10)
    assert codes(examine(wrong)) == []
    assert codes(examine(probe_of(base, digits, count=1))) == []


def test_the_cost_is_what_the_estimate_says(robust, digits):
    """Counted in samples through the network, on one for which almost nothing breaks."""
    forward, backward = 0, 0

    def network(x):
        nonlocal forward, backward
        forward += len(x)
        backward += len(x) if x.requires_grad else 0
        return robust(x)

    index = torch.arange(1300, 1428)
    probe = Probe(network, digits[0][index], digits[1][index], index, make_threat("linf", 0.03))
    last = [module for module in robust.modules() if isinstance(module, nn.Linear)][-1]
    checked = examine(probe, broken=torch.zeros(len(probe), dtype=torch.bool), last=last)
    assert {"stronger attack", "grid attack", "fresh head", "random search"} <= {check.name for check in checked}
    spent = 0.35 * (forward - backward) + backward
    assert 0.75 * probe_passes(128, 128) < spent < 1.05 * probe_passes(128, 128)
    assert [probe_size(n) for n in (10, 100, 500, 1000, 10_000)] == [10, 32, 32, 62, 128]


# ---- what the audit measured ---------------------------------------------------------------------------


def measured(name, broken, budget="linf 0.1", counted=None, **options):
    """Of class 1, all right clean; broken (N,) bool are taken for class 2."""
    y = np.ones(len(broken), dtype=np.int64)
    counted = np.ones(len(broken), dtype=bool) if counted is None else counted
    diagnosis = ClassDiagnosis(y, y.copy(), np.where(broken, 2, 1), counted)
    return Measured(name, ATTACKS.get(name).role, budget, diagnosis, **{"ran": np.ones(len(y), dtype=bool), **options})


def first(count, n=1000):
    return np.arange(n) < count


def test_one_step_that_beats_many_is_found():
    assert codes(compare([measured("fgsm", first(300)), measured("pgd", first(100))])) == ["one-step-wins"]
    assert codes(compare([measured("fgsm", first(100)), measured("pgd", first(300))])) == []
    rows = compare([measured("fgsm", ~first(900)), measured("pgd", first(880)), measured("t-pgd", first(895))])
    assert codes(rows) == ["one-step-wins"]
    assert (rows[-1].n, rows[-1].saw["broken"]) == (105, 100)


def test_few_samples_and_other_budgets_prove_nothing():
    assert codes(compare([measured("fgsm", first(118)), measured("pgd", first(100))])) == []
    assert codes(compare([measured("fgsm", first(300), budget="linf 0.3"), measured("pgd", first(100))])) == []
    assert codes(compare([measured("fgsm", first(300)), measured("autoattack", first(100))])) == []
    # All of the few survivors, but half a point of the number.
    assert codes(compare([measured("square", first(1000)), measured("pgd", first(995))])) == []


def test_a_search_that_beats_gradients_is_found_also_behind_them_in_a_cascade():
    pgd, square = measured("pgd", first(100)), measured("square", first(160))
    assert codes(compare([pgd, square])) == ["random-search-wins"]
    behind = measured("square", first(160) & ~first(100), ran=~first(100))
    assert [(row.n, row.saw) for row in compare([pgd, behind])[-1:]] == [(900, {"broken": 60})]
    # The other way round what square had broken PGD never saw: nothing is to be compared there.
    skipped = measured("pgd", first(0), ran=~first(160))
    assert codes(compare([square, skipped])) == []
    assert codes(compare([measured("fgsm", first(300)), measured("square", first(100))])) == []


def test_honest_attacks_that_differ_by_luck_are_seldom_doubted():
    """Two attacks that each miss 1% of what can be broken, independently: 1000 audits of 1000 samples."""
    generator = np.random.default_rng(0)
    doubted = 0
    for _ in range(1000):
        breakable = first(int(generator.integers(0, 1001)))
        pgd, fgsm = (breakable & (generator.random(1000) > 0.01) for _ in range(2))
        doubted += bool(codes(compare([measured("pgd", pgd), measured("fgsm", fgsm)])))
    assert doubted <= 3


def test_an_adversarial_that_was_seen_and_not_returned_is_found():
    seen = np.where(first(300), 3, 0)
    assert codes(compare([measured("pgd", first(300), found_at=seen)])) == []
    assert codes(compare([measured("pgd", first(298), found_at=seen)])) == []
    rows = compare([measured("pgd", first(250), found_at=seen)])
    assert codes(rows) == ["silent-success"]
    assert (rows[-1].n, rows[-1].saw["lost"]) == (300, 50)
    outside = measured("pgd", first(250), found_at=seen, counted=first(250))
    assert codes(compare([outside])) == []  # out of budget: told elsewhere


def test_answers_that_are_no_class_are_found():
    attack = measured("pgd", first(100))
    silent = np.where(first(60), -1, attack.diagnosis.adversarial)
    mute = dataclasses.replace(attack, diagnosis=dataclasses.replace(attack.diagnosis, adversarial=silent))
    assert codes(compare([attack])) == []
    assert codes(compare([mute])) == ["nan-under-attack"]


@pytest.mark.parametrize(
    ("history", "source", "split", "same"),
    [
        ([{"method": "standard", "epochs": 8}], "npz:mnist.npz", "test", False),
        ([{"data": "npz:mnist.npz", "split": "train"}], "npz:mnist.npz", "test", False),
        ([{"data": "npz:mnist.npz", "split": "test"}], "npz:/elsewhere/mnist.npz", "test", True),
        ([{}, {"train_data": "npz:a/mnist.npz?split=test"}], "npz:mnist.npz", "test", True),
        ([{"data": "npz:mnist.npz?split=train"}], "npz:mnist.npz?split=train", "", True),
        ([{"data": "npz:mnist.npz"}], "npz:mnist.npz", "test", False),
        ([{"data": "npz:other.npz", "split": "test"}], "npz:mnist.npz", "test", False),
        ([{"data": "imagefolder:pets?size=64", "split": "train"}], "imagefolder:/x/pets/train", "train", True),
        ([{"data": "torchvision:CIFAR10?root=/a&split=train"}], "torchvision:CIFAR10?root=/b", "train", True),
    ],
)
def test_training_on_the_audited_samples_is_told_where_the_checkpoint_says_so(history, source, split, same):
    assert codes([trained_on_the_same(history, source, split)]) == (["trained-on-these-samples"] if same else [])


# ---- the shipped networks ------------------------------------------------------------------------------


def shipped(samples, name, seed, count, eps=None):
    network = open_network(samples / name, settings_from({}), {})
    rows = np.sort(np.random.default_rng(seed).permutation(len(network.labels))[:count])
    threat = make_threat("linf", eps or network.settings.eps, network.bounds)
    x, y = network.data.read(rows), torch.from_numpy(network.labels[rows])
    probe = Probe(network.classifier, x, y, torch.from_numpy(rows), threat, seed=seed)
    history = network.description.history
    return [*examine(probe), trained_on_the_same(history, network.data.spec, network.data.split)]


@pytest.mark.parametrize(
    ("name", "seed", "count"),
    [
        ("mnist_cnn.pt", 0, 64),
        ("mnist_cnn.pt", 1, 64),
        ("mnist_cnn_at.pt", 0, 128),  # as many as an audit of 1,000 samples takes
        *[("moon_mlp.pt", seed, 128) for seed in range(4)],
    ],
)
def test_the_shipped_networks_are_trusted(samples, name, seed, count):
    evidence = evidence_of(shipped(samples, name, seed, count))
    assert evidence.verdict == "trusted"
    assert evidence.findings == []
    assert len(evidence.checks) >= 8


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [("mnist_cnn.pt", 32), ("mnist_cnn_at.pt", 32), ("moon_mlp.pt", 128)])
@pytest.mark.parametrize(("eps", "seed"), [(None, 2), (0.1, 3)])
def test_the_shipped_networks_are_trusted_whatever_the_probe(samples, name, count, eps, seed):
    assert codes(shipped(samples, name, seed, count, eps)) == []
