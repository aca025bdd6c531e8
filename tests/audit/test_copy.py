"""Attacks begin on a faster copy, and every number of the report is the network's own."""

import dataclasses

import pytest
import torch
from torch import nn

from lsa_cli import audit
from lsa_cli.attacks import make_threat
from lsa_cli.attacks.apgd import APGD, TargetedAPGD
from lsa_cli.attacks.fmn import FMN
from lsa_cli.attacks.gradient import FGSM, PGD
from lsa_cli.auditing import copies
from lsa_cli.auditing.plan import make_plan
from lsa_cli.models.classifier import Classifier
from lsa_cli.models.precision import Copy, make_copy
from lsa_cli.settings import settings_from
from tests.fitting import fitted
from tests.foreign_networks import small_cnn


@pytest.fixture(scope="module")
def task():
    """Two brightnesses of 6 x 6 images, which a network with a foldable norm tells apart."""
    torch.manual_seed(0)
    y = torch.arange(90) % 3
    x = (0.3 * torch.rand(90, 1, 6, 6) + 0.2 * y[:, None, None, None]).clamp(0, 1)
    body = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3)
    )  # fmt: skip
    return fitted(body, x, y, 60, lr=0.02), x, y


def audited(task, **options):
    body, x, y = task
    options = {"eps": 0.08, "noise": "none", "attack": ["pgd:steps=5", "apgd-ce:steps=5"], "threads": 1, **options}
    return audit(body, data=(x, y), **options)


def numbers(report):
    rows = report.samples.model_dump(exclude={"margin", "distance"})
    return report.verdict.robust.value, [outcome.robust.value for outcome in report.outcomes], rows


def test_the_report_says_what_was_attacked(task, precision):
    fast, slow = audited(task), audited(task, fast=False)
    assert fast.protocol.attacked == (
        f"a copy in {precision}, channels last, 1 BatchNorm folded, in the first part of pgd, apgd-ce; "
        "the network itself in all other steps"
    )
    assert slow.protocol.attacked == "the network itself: --no-fast"
    assert 0 < slow.verdict.robust.value < 1
    assert abs(fast.verdict.robust.value - slow.verdict.robust.value) <= 0.025  # 2 of 90


def test_attacks_that_do_not_begin_on_a_copy_get_none(task):
    report = audited(task, attack=["fgsm", "fmn:steps=5"])
    assert report.protocol.attacked == "the network itself: no attack of this audit starts on an optimized copy"


class Liar(nn.Module):
    """Calls every input wrong."""

    def __init__(self, classifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, x):
        return self.classifier(x).roll(1, dims=1)


class Blind(nn.Module):
    """The same logits, and a gradient that leads nowhere."""

    def __init__(self, classifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, x):
        return self.classifier(x.detach()) + 0 * x.sum()


@pytest.mark.parametrize("kind", [Liar, Blind])
def test_a_copy_that_misleads_decides_nothing(task, monkeypatch, kind):
    honest = audited(task, fast=False, attack="pgd:steps=20")
    monkeypatch.setattr(copies, "make_copy", lambda classifier, x, y: Copy(kind(classifier), "a bad copy"))
    misled = audited(task, attack="pgd:steps=20")
    assert misled.protocol.attacked.startswith("a bad copy")
    # The last three steps are the network's: as strong as three steps, and what is broken is broken on the network.
    three = audited(task, fast=False, attack="pgd:steps=3,step_size=0.01")
    robust = [report.outcomes[0].robust.value for report in (honest, misled, three)]
    assert robust[0] <= robust[1] <= robust[2] + 0.05
    assert "stronger-attack-wins" in [finding.code for finding in misled.evidence.findings]
    assert misled.outcomes[0].discarded == 0


CHECKPOINT = "checkpoints/fast_adversarial/fgsm.pth"  # gradients that a shorter precision misleads
TOLERATED = 2  # samples of 100 that may survive beside the copy beyond those that survive without it alone


def left(attack, model, x, y, copy):
    x_adv = attack(model, x, y, goal="break", copy=copy)
    with torch.no_grad():
        return (model(x_adv).argmax(1) == y) | ~attack.threat.contains(x_adv, x)


def compare(attack, model, x, y, monkeypatch):
    monkeypatch.setenv("LSA_COPY_PRECISION", "bfloat16")
    copy = make_copy(model, x[:8], y[:8])
    assert "bfloat16" in copy.described
    beside, alone = (left(attack, model, x, y, one) for one in (copy.model, None))
    assert int((beside & ~alone).sum()) <= int((alone & ~beside).sum()) + TOLERATED


ATTACKS = [
    PGD(make_threat("linf", 0.3)),
    APGD(make_threat("linf", 0.3), steps=50),
    TargetedAPGD(make_threat("linf", 0.3), steps=50, targets=3),
    FMN(make_threat("l2", 1.5), steps=50),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: type(attack).__name__)
def test_a_copy_in_bfloat16_leaves_no_more_of_a_real_network(attack, data_root, monkeypatch):
    from torchvision import datasets

    body = small_cnn()
    body.load_state_dict(torch.load(data_root / CHECKPOINT, map_location="cpu", weights_only=True))
    data = datasets.MNIST(data_root, train=False)
    model = Classifier(body, None).eval().requires_grad_(False)
    compare(attack, model, data.data[:100, None] / 255, data.targets[:100], monkeypatch)


def test_a_copy_in_bfloat16_leaves_no_more_of_the_sample(samples, monkeypatch):
    plan = make_plan(samples / "mnist_cnn.pt", settings_from({"limit": 40, "threads": 1}), {})
    x, y = plan.network.data.read(plan.index), torch.from_numpy(plan.network.labels[plan.index])
    compare(PGD(dataclasses.replace(plan.threat, eps=0.08)), plan.network.classifier, x, y, monkeypatch)


class InplaceBeforeNorm(nn.Module):
    """The tensor that a convolution hands to a norm is written to on the way; folding would keep the outputs."""

    def __init__(self):
        super().__init__()
        self.conv, self.act = nn.Conv2d(1, 6, 3), nn.ReLU(inplace=True)
        self.norm, self.act2 = nn.BatchNorm2d(6), nn.ReLU(inplace=True)
        self.head = nn.Linear(96, 3)
        with torch.no_grad():
            self.norm.bias.fill_(-0.1)
        self.norm.running_mean.fill_(0.1)

    def forward(self, x):
        return self.head(self.act2(self.norm(self.act(self.conv(x)))).flatten(1))


def test_layers_that_write_into_their_input_are_measured_before_it_is_overwritten(task, precision):
    torch.manual_seed(1)
    body, x = InplaceBeforeNorm().eval(), task[1]
    y = body(x).argmax(1)
    options = {"attack": "fgsm", "layers": ["conv", "act", "act2"], "eps": 0.05, "noise": "none", "threads": 1}
    report = audit(body, data=(x, y), **options)
    seen = {layer.name: layer.mean for layer in report.outcomes[0].layers.rows}
    x_adv = FGSM(make_threat("linf", 0.05))(body, x, y)

    def outputs(x):
        conv = body.conv(x)
        return {"conv": conv, "act": conv.relu(), "act2": body.norm(conv.relu()).relu()}

    with torch.no_grad():
        clean, moved = outputs(x), outputs(x_adv)
    for name, value in clean.items():
        wanted = (moved[name] - value).flatten(1).norm(dim=1) / value.flatten(1).norm(dim=1)
        assert seen[name] == pytest.approx(float(wanted.mean()), rel=1e-4)
    fast = audit(body, data=(x, y), **{**options, "attack": "pgd:steps=5"})
    assert f"a copy in {precision}, channels last, in" in fast.protocol.attacked  # nothing folded
