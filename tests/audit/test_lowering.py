"""An attack that the evidence finds to beat those of an audit becomes part of the verdict."""

import pytest
import torch
from torch import nn

from lsa_cli import audit
from lsa_cli.auditing import limits
from lsa_cli.auditing.journal import Journal
from lsa_cli.auditing.plan import make_plan
from lsa_cli.auditing.run import run_audit
from lsa_cli.report.compare import attack_settings
from lsa_cli.settings import settings_from
from tests.fitting import fitted


class Decoys(nn.Module):
    """Every other class stands just below the winner and follows the input at random, so that gradients of the logits mislead."""

    def __init__(self, body):
        super().__init__()
        self.body = body
        self.register_buffer("w", torch.randn(36, 4, generator=torch.Generator().manual_seed(3)))

    def forward(self, x):
        z = 3 * self.body(x)
        near = z.amax(1, keepdim=True) - 1 + 0.5 * torch.tanh(x.flatten(1) @ self.w)
        return torch.where(z == z.amax(1, keepdim=True), z, torch.maximum(z, near))


@pytest.fixture(scope="module")
def task():
    torch.manual_seed(0)
    x = torch.rand(150, 1, 6, 6)
    y = ((x - 0.5).flatten(1) @ torch.randn(36, 4)).argmax(1)
    body = nn.Sequential(nn.Flatten(), nn.Linear(36, 24), nn.Tanh(), nn.Linear(24, 4))
    return fitted(body, x, y, 150), x, y


SETTINGS = {"eps": 0.03, "noise": "none", "threads": 1, "attack": "pgd"}


def plan_of(task, **options):
    body, x, y = task
    return make_plan(Decoys(body), settings_from({**SETTINGS, **options}), {}, (x, y))


@pytest.fixture(scope="module")
def report(task):
    return run_audit(plan_of(task, gate={"robust": 0.6}))


def added(report):
    return [stage for stage in report.cascade if stage.by_evidence]


def test_the_verdict_takes_the_lower_number_and_stays_doubtful(task, report):
    before = report.outcomes[0].robust
    assert report.verdict.robust.count < before.count - 30
    assert report.verdict.robust.count == before.count - sum(stage.broke for stage in added(report))
    assert added(report)[0].tried == before.count
    assert report.verdict.attacks == ["pgd", *(stage.attack for stage in added(report))]
    assert (
        sum(name is None for name in report.samples.broken_by)
        - (len(report.samples.label) - report.verdict.clean.count)
        == report.verdict.robust.count
    )
    assert sum(row.robust.count for row in report.verdict.classes) == report.verdict.robust.count
    assert [gate.passed for gate in report.gates] == [report.verdict.robust.value >= 0.6] == [False]
    assert report.evidence.verdict == "doubtful"
    first = next(finding for finding in report.evidence.findings if "lowered the robust accuracy" in finding.message)
    assert f"from {before.value:.1%} to " in first.message


def test_the_attack_on_another_output_breaks_about_what_the_bare_network_loses(task, report):
    body, x, y = task
    bare = audit(body, data=(x, y), **SETTINGS)
    assert report.verdict.robust.value <= bare.verdict.robust.value + 0.05


def test_an_honest_network_gets_no_further_attack(task):
    body, x, y = task
    honest = audit(body, data=(x, y), **SETTINGS)
    assert honest.evidence.verdict == "trusted"
    assert honest.cascade == []


def test_what_stronger_attacks_break_counts_without_a_finding_where_they_tried_all_survivors(task):
    body, x, y = task
    short = audit(body, data=(x, y), **SETTINGS | {"attack": "pgd:steps=3"})
    (check,) = [check for check in short.evidence.checks if check.name == "stronger attack"]
    assert short.evidence.findings == []
    assert check.n == short.outcomes[0].robust.count
    assert 0 < check.saw["broken"] <= short.outcomes[0].robust.count - short.verdict.robust.count
    assert check.statement in short.evidence.statements
    assert short.verdict.robust.count <= audit(body, data=(x, y), **SETTINGS).verdict.robust.count


def test_batches_and_a_resumed_run_change_nothing(task, tmp_path, report):
    plan = plan_of(task, gate={"robust": 0.6})
    journal = Journal(tmp_path / "journal", {}, resume=False)
    put = journal.put

    def until_added(stage, number, arrays):
        put(stage, number, arrays)
        if stage.startswith("found"):
            raise KeyboardInterrupt

    journal.put = until_added
    with pytest.raises(KeyboardInterrupt):
        run_audit(plan, journal=journal)
    journal.close()
    for other in (
        run_audit(plan, journal=Journal(tmp_path / "journal", {}, resume=True)),
        run_audit(plan_of(task, gate={"robust": 0.6}, batch_size=40)),
    ):
        assert other.samples.broken_by == report.samples.broken_by
        assert [stage.broke for stage in other.cascade] == [stage.broke for stage in report.cascade]


def test_a_budget_that_ends_in_the_further_attack_is_told(task, monkeypatch, report):
    label, running = added(report)[0].attack, []
    late = limits.Clock.is_late
    monkeypatch.setattr(limits.Clock, "is_late", lambda clock: label in running or late(clock))
    cut = run_audit(plan_of(task, budget="1h", batch_size=32), progress=lambda what, done, total: running.append(what))
    assert label in cut.not_run
    assert cut.status == "complete"
    assert report.verdict.robust.count <= cut.verdict.robust.count <= report.outcomes[0].robust.count
    assert any("until the time budget ended" in finding.message for finding in cut.evidence.findings)


def test_reports_with_and_without_a_further_attack_are_of_the_same_attacks(task, report):
    body, x, y = task
    honest = run_audit(make_plan(body, settings_from(SETTINGS), {}, (x, y)))
    assert attack_settings(honest, True) == attack_settings(report, True)


def test_an_attack_on_features_ends_where_the_network_leaves_its_last_layer_out(task):
    body, x, y = task

    class OnlyOnGrid(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = body

        def forward(self, x):
            features = self.body[:3](x)
            last = self.body[3]
            is_on_grid = bool(((255 * x).round() - 255 * x).abs().max() < 1e-3)
            return last(features) if is_on_grid else features @ last.weight.T + last.bias

    images = (255 * x).round() / 255
    report = audit(OnlyOnGrid(), data=(images, y), **{**SETTINGS, "eps": 0.01})
    check = next(check for check in report.evidence.checks if check.name == "feature attack")
    assert check.n > 0
    assert report.evidence.verdict == "trusted"
