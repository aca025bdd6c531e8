"""From arrays to the rows of a report, through audit() on networks and attacks that misbehave."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from lsa_cli import audit
from lsa_cli.attacks import ATTACKS, Attack, Threat
from lsa_cli.auditing.class_diagnosis import ClassDiagnosis
from lsa_cli.auditing.outcome import worst_case


@dataclass(frozen=True)
class Brighter(Attack):
    """Knows no budget: it is judged by the audit's."""

    steps: int = 1
    step_size: float | None = None

    def perturb(self, model, x, y):
        return (x + 0.05).clamp(0, 1)


@dataclass(frozen=True)
class Half(Attack):
    """Every second sample of a batch is NaN, the next leaves the budget."""

    threat: Threat

    def perturb(self, model, x, y):
        x = x.clone()
        x[::2] = torch.nan
        x[1] = 1 - x[1]
        return x


@pytest.fixture(autouse=True)
def _registered():
    ATTACKS.register("brighter")(Brighter)
    ATTACKS.register("half")(Half)
    yield
    del ATTACKS._entries["brighter"], ATTACKS._entries["half"]


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.act, self.head = nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)

    def forward(self, x):
        return self.head(self.act(self.hidden(x.flatten(1))))


@pytest.fixture
def task():
    torch.manual_seed(3)
    body, x = Network(), torch.rand(60, 1, 4, 4).mul(16).round() / 16
    with torch.no_grad():
        body.head.bias -= body(x).mean(0)
        y = body(x).argmax(1)
    assert len(y.unique()) == 3
    return body, x, y


def run(body, x, y, **options):
    return audit(body, data=(x, y), **{"eps": 0.1, "noise": "none", "threads": 1, **options})


def strip(report):
    content = report.model_dump(exclude={"created", "seconds", "protocol"})
    for outcome in content["outcomes"]:
        del outcome["seconds"]
    return content


def counts(report):
    return [(o.name, o.robust, o.success, o.confusion, o.layers.mvl) for o in report.outcomes], report.verdict.classes


@pytest.mark.parametrize("size", [1, 7, 64])
def test_the_report_is_the_same_for_any_batch_size(task, size):
    whole, other = run(*task, noise="gaussian"), run(*task, noise="gaussian", batch_size=size)
    assert counts(whole) == counts(other)
    for a, b in zip(whole.outcomes, other.outcomes, strict=True):
        for row, same in zip(a.layers.rows, b.layers.rows, strict=True):
            assert row.mean == pytest.approx(same.mean, rel=1e-5)
            assert row.low == pytest.approx(same.low, rel=1e-5)


def test_an_audit_leaves_generators_threads_and_flags_as_they_were(task):
    torch.manual_seed(11)
    np.random.seed(11)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    threads = torch.get_num_threads()
    flags = (torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32, torch.is_grad_enabled())
    run(*task, noise="gaussian", threads=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    assert torch.get_num_threads() == threads
    assert flags == (torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32, torch.is_grad_enabled())


def test_a_networks_own_hooks_are_kept(task):
    body, x, y = task
    handle = body.hidden.register_forward_hook(lambda *_: None)
    before = dict(body.hidden._forward_hooks)
    run(body, x, y)
    assert dict(body.hidden._forward_hooks) == before
    handle.remove()


def test_a_network_that_answers_nan_is_not_right_there(task):
    """argmax calls the first NaN the largest, which would make class 0 robust."""

    class Fragile(nn.Module):
        def __init__(self, body):
            super().__init__()
            self.body = body

        def forward(self, x):
            off_grid = (x - x.mul(16).round() / 16).abs().flatten(1).amax(1) > 1e-4
            return self.body(x).masked_fill(off_grid[:, None], torch.nan)

    body, x, y = task
    report = run(Fragile(body), x, y, attack="fgsm", layers="body.*", eps=0.01, eps_grid="0,0.01")
    assert report.verdict.clean.count == 60
    assert report.verdict.robust.count == 0
    assert [point.robust.count for point in report.curves[0].points] == [60, 0]
    (warning,) = [warning for warning in report.warnings if warning.code == "output-not-finite"]
    assert "60 perturbed inputs" in warning.message
    assert sum(map(sum, report.outcomes[0].confusion)) == 0


def test_perturbed_inputs_that_are_not_finite_or_out_of_budget_are_counted_as_discarded(task):
    report = run(*task, attack="half", batch_size=60)
    assert report.outcomes[0].discarded == 31
    assert report.outcomes[0].robust == report.verdict.clean
    said = {warning.code: warning.message for warning in report.warnings}
    assert "30 perturbed inputs" in said["attack-not-finite"]
    assert "1 perturbed inputs" in said["out-of-budget"]


def test_an_attack_without_a_budget_of_its_own_is_judged_by_the_audits_at_every_radius(task):
    report = run(*task, attack="brighter", eps_grid="0,0.01,0.1")
    (outcome,), (curve,) = report.outcomes, report.curves
    assert outcome.settings == {"steps": 1, "step_size": None}
    broken = outcome.success.count
    assert broken > 0
    assert [point.robust.count for point in curve.points] == [60, 60, 60 - broken]
    assert run(*task, attack="brighter", eps=0.01).outcomes[0].success.count == 0


def test_the_worst_case_names_the_first_attack_that_broke_a_sample():
    y = np.zeros(4, dtype=int)
    every = np.ones(4, dtype=bool)
    first = ClassDiagnosis(y, y, np.array([1, 0, 0, 0]), every)
    second = ClassDiagnosis(y, y, np.array([2, 2, 2, 0]), np.array([True, True, False, True]))
    worst = worst_case([first, second])
    assert worst.robust.tolist() == [False, False, True, True]
    assert worst.adversarial[:2].tolist() == [1, 2]


def test_weight_norms_are_those_of_the_output_layer(task):
    body, x, y = task
    report = run(body, x, y, attack="pgd", eps=0.03)
    robust = [row.robust.value for row in report.outcomes[0].classes]
    norms = body.head.weight.detach().norm(dim=1).tolist()
    rank = lambda values: np.argsort(np.argsort(values))  # noqa: E731
    assert len(set(robust)) == 3
    expected = np.corrcoef(rank(norms), rank(robust))[0, 1]
    assert report.outcomes[0].class_summary.weight_norm_correlation == pytest.approx(expected)


def test_no_budget_attack_is_no_verdict(task):
    report = run(*task, attack="none", noise="gaussian")
    assert report.verdict.robust is None
    assert "nothing is known" in report.verdict.statement
    assert report.pairs == []
    assert [outcome.kind for outcome in report.outcomes] == ["noise"]
