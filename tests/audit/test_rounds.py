"""The ranked cascade in an audit: what the report says of its rounds, patience, resuming, and a spent budget."""

import pytest
import torch
from torch import nn

from lsa_cli import audit
from lsa_cli.auditing import limits
from lsa_cli.auditing.journal import Journal
from lsa_cli.auditing.plan import make_plan
from lsa_cli.auditing.run import run_audit
from lsa_cli.errors import UsageError
from lsa_cli.report import markdown
from lsa_cli.report.compare import compare
from lsa_cli.settings import settings_from
from tests.fitting import fitted

NAMES = [
    "pgd-margin",
    "pgd-ce",
    "odi-pgd",
    "apgd-ce",
    "square-pgd",
    "apgd-t",
    "fab-t",
    "odi-pgd long",
    "square-pgd again",
]


@pytest.fixture(scope="module")
def task():
    torch.manual_seed(0)
    x = torch.rand(150, 1, 6, 6)
    y = (x.flatten(1) @ torch.randn(36, 4)).argmax(1)
    body = nn.Sequential(nn.Flatten(), nn.Linear(36, 24), nn.Tanh(), nn.Linear(24, 4))
    return fitted(body, x, y, 150), x, y


def settings(**options):
    return settings_from(
        {"eps": 0.02, "noise": "none", "threads": 1, "attack": ["pgd:steps=1", "ranked-cascade"], **options}
    )


def run(task, **options):
    body, x, y = task
    return audit(body, data=(x, y), **settings(**options).given("measured"))


@pytest.fixture(scope="module")
def report(task):
    return run(task)


def test_the_report_says_how_many_samples_each_round_attacked(report):
    assert [stage.attack for stage in report.cascade] == NAMES
    assert report.verdict.attacks == ["pgd", *NAMES]
    left = report.outcomes[0].robust.count
    for stage in report.cascade:
        assert stage.ranked.robust == left
        assert stage.ranked.first <= stage.ranked.last <= left
        assert stage.ranked.last <= stage.tried <= stage.ranked.last + stage.ranked.far
        left -= stage.broke
        assert stage.robust.count == left
    assert report.verdict.robust.count == left
    assert report.cascade[-1].tried < report.cascade[0].tried
    assert f"Of the {left} that are still robust, " in report.verdict.statement


def test_patience_attacks_all_that_are_robust_and_a_rank_loses_none_here(task, report):
    patient = run(task, patient=True)
    left = patient.outcomes[0].robust.count
    for stage in patient.cascade:
        assert stage.tried == left
        left -= stage.broke
    assert patient.verdict.robust.count == report.verdict.robust.count
    assert 0 < left < len(task[2])


def test_what_the_rounds_find_does_not_depend_on_batches(task, report):
    small = run(task, batch_size=7)
    assert small.samples.broken_by == report.samples.broken_by
    assert [stage.ranked for stage in small.cascade] == [stage.ranked for stage in report.cascade]


def test_an_audit_that_is_killed_in_any_round_resumes_to_the_same_report(task, tmp_path, report):
    body, x, y = task
    plan = make_plan(body, settings(), {}, (x, y))
    for number, stopped in enumerate((2, 4, 7)):
        folder = tmp_path / str(number)
        journal, puts = Journal(folder, {}, resume=False), []
        put = journal.put

        def until(stage, count, arrays, put=put, puts=puts, stopped=stopped):
            put(stage, count, arrays)
            puts.append(stage)
            if len({name for name in puts if name.startswith("round")}) == stopped:
                raise KeyboardInterrupt

        journal.put = until
        with pytest.raises(KeyboardInterrupt):
            run_audit(plan, journal=journal)
        journal.close()
        whole = run_audit(plan, journal=Journal(folder, {}, resume=True))
        assert whole.samples == report.samples
        assert [stage.ranked for stage in whole.cascade] == [stage.ranked for stage in report.cascade]


def test_a_budget_that_ends_in_a_round_names_what_was_not_run(task, monkeypatch):
    body, x, y = task
    plan = make_plan(body, settings(budget="1h"), {}, (x, y))
    late = limits.Clock.is_late
    running = []
    monkeypatch.setattr(limits.Clock, "is_late", lambda clock: "apgd-t" in running or late(clock))
    report = run_audit(plan, progress=lambda what, done, total: running.append(what))
    assert report.not_run[:3] == ["fab-t", "odi-pgd long", "square-pgd again"]
    assert "pgd-margin" not in report.not_run
    assert "met every round" not in report.verdict.statement
    assert all(stage.ranked is not None for stage in report.cascade if stage.attack != "apgd-t")


def test_an_interrupted_audit_names_what_was_not_run(task):
    body, x, y = task
    reports = []

    def stop(what, done, total):
        if what == "apgd-t":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_audit(make_plan(body, settings(), {}, (x, y)), progress=stop, on_update=reports.append)
    ended = reports[-1]
    assert ended.status == "interrupted"
    assert {"apgd-t", "fab-t", "square-pgd again", "evidence"} <= set(ended.not_run)
    assert "pgd-margin" not in ended.not_run
    assert "the audit was interrupted" in markdown.render(ended)
    assert [report.not_run for report in reports[:-1]] == [[]] * (len(reports) - 1)


def test_a_stochastic_network_gets_the_version_of_autoattack_for_it(task):
    body, x, y = task

    class Noisy(nn.Module):
        def forward(self, inputs):
            return body(inputs + 0.1 * torch.randn_like(inputs))

    plan = make_plan(Noisy(), settings(), {}, (x, y))
    assert plan.is_stochastic
    assert [named.name for named in plan.cascade] == ["apgd-ce", "apgd-dlr"]
    assert plan.rounds == ()


def test_a_round_that_repeats_an_attack_on_all_is_left_out(task):
    body, x, y = task

    def cascade(*attacks):
        plan = make_plan(body, settings(norm="l2", eps=0.1, attack=list(attacks)), {}, (x, y))
        return [named.label for named in plan.cascade]

    alone = cascade("pgd", "ranked-cascade")
    assert alone[0] == "fmn"
    assert "fab-t" in alone
    assert cascade("fmn", "ranked-cascade") == alone[1:]
    both = cascade("autoattack", "ranked-cascade")
    assert both.count("fab-t") == 1
    assert "ranked-cascade fab-t" not in both
    assert "ranked-cascade apgd-t" in both  # it has other settings


def test_a_patient_report_is_not_compared_with_another(task, report):
    patient = run(task, patient=True)
    with pytest.raises(UsageError, match=r"attacks differ \(no other against patient\)"):
        compare(report, patient)


def test_a_file_that_asks_for_patience_without_a_cascade_is_told_so(task, tmp_path):
    body, x, y = task
    (tmp_path / "lsa.yaml").write_text("patient: true\n")
    given = {"eps": 0.02, "noise": "none", "threads": 1, "attack": ["pgd:steps=1"], "config": tmp_path / "lsa.yaml"}
    told = [warning.message for warning in audit(body, data=(x, y), **given).warnings]
    assert any(message.startswith(f"patient of {tmp_path / 'lsa.yaml'} is not used") for message in told)
