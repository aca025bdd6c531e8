"""--gate-only: the decisions are those of the full audit, from fewer samples."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from lsa_cli.auditing.early import decide_early
from lsa_cli.auditing.execution import sample_order
from lsa_cli.auditing.plan import make_plan
from lsa_cli.auditing.run import run_audit
from lsa_cli.errors import UsageError
from lsa_cli.report import by_sample
from lsa_cli.report.limits import METRICS
from lsa_cli.report.schema import Early
from lsa_cli.settings import settings_from
from lsa_cli.stats import confidence_sequence, difference_sequence, wilson

N = 1200


@pytest.fixture(scope="module")
def task():
    """Images with four classes, some of which a small attack breaks: class k is bright in quarter k."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(N, 1, 8, 8, generator=generator)
    y = torch.arange(N) % 4
    quarters = x.view(N, 4, 16)
    quarters[torch.arange(N), y] = (quarters[torch.arange(N), y] + 0.12).clamp(0, 1)
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 4, bias=False))
    weight = torch.zeros(4, 64)
    for k in range(4):
        weight[k, 16 * k : 16 * (k + 1)] = 10 / 16
    body[1].weight.data = weight
    return body.eval(), x, y


def plan_of(task, gate, **options):
    body, x, y = task
    given = {
        "eps": 0.02,
        "noise": "none",
        "threads": 1,
        "attack": ["fgsm", "pgd:steps=3"],
        "limit": "all",
        "layers": "none",
        **({"gate_only": True} if "baseline" in options else {}),
        **options,
    }
    return make_plan(body, settings_from({**given, "gate": gate}), {}, data=(x, y))


def why_of(report):
    """Why the run ended, as its statement says. A warning says it too."""
    why = report.verdict.statement.rpartition(" samples because ")[2].partition(" No evidence ")[0].rstrip(".")
    (warning,) = [warning.message for warning in report.warnings if warning.code == "gate-only"]
    assert why in warning or why == "they decided the limits"
    return why


@pytest.fixture(scope="module")
def full(task):
    return run_audit(plan_of(task, {}))


def test_all_samples_give_the_numbers_of_the_full_audit(task, full):
    """A limit on the rate itself cannot be decided before the end: then every row must be that of the full audit."""
    gate = {"robust": full.verdict.robust.value, "robust.fgsm": full.outcomes[0].robust.value + 1 / N}
    report = decide_early(plan_of(task, gate))
    assert report.early.used == report.early.population == N
    assert report.verdict.robust == full.verdict.robust
    assert report.verdict.clean == full.verdict.clean
    assert report.verdict.classes == full.verdict.classes
    assert report.samples.model_dump(exclude={"held", "look", "margin", "distance"}) == full.samples.model_dump(
        exclude={"held", "look", "margin", "distance"}
    )
    held, breached = report.gates
    assert (held.state, held.low, held.high) == ("held", *[full.verdict.robust.value] * 2)
    assert (breached.state, breached.measured) == ("breached", full.outcomes[0].robust.value)
    assert {gate.decided_by for gate in report.gates} == {"sequence"}


def test_it_stops_as_soon_as_all_are_decided(task, full):
    robust = full.verdict.robust.value
    report = decide_early(plan_of(task, {"robust": robust - 0.15, "clean": {"max": 0.3}}), alpha=0.02)
    assert [gate.state for gate in report.gates] == ["held", "breached"]
    used = report.early.used
    assert used < N / 3
    assert report.verdict.robust.n == used == len(report.samples.index)
    low, high = confidence_sequence(report.verdict.robust.count, used, N, 0.02 / 2)
    assert (report.gates[0].low, report.gates[0].high) == (low, high)
    assert low >= robust - 0.15
    assert why_of(report) == "they decided the limits"
    assert report.verdict.robust.count == sum(row.robust.count for row in report.verdict.classes)
    assert report.cascade[-1].robust.count == report.verdict.robust.count


def test_the_intervals_of_the_verdict_hold_where_it_stops(task, full):
    """Runs that stop after the first few samples, each in another random order: the share of all samples is inside of nearly all.

    Those of the four classes hold together: each end errs with a fourth of 2.5%.
    """
    inside = 0
    for seed in range(40):
        verdict = decide_early(plan_of(task, {"robust": 0.97}, seed=seed, attack=["fgsm"])).verdict
        low, high = wilson(verdict.robust.count, verdict.robust.n)
        assert verdict.robust.n < N / 4
        assert verdict.robust.low <= low < high <= verdict.robust.high
        inside += verdict.robust.low <= full.outcomes[0].robust.value <= verdict.robust.high
        assert verdict.clean.low <= full.verdict.clean.value <= verdict.clean.high
        for row in (row.robust for row in verdict.classes if row.robust.n):
            low, high = confidence_sequence(row.count, row.n, N // 4, 0.025 / 4)
            assert row.low <= low <= high <= row.high
    assert inside >= 38


def test_the_seed_draws_the_order(task):
    first, again, other = (decide_early(plan_of(task, {"robust": 0.01}, seed=seed)).samples.index for seed in (0, 0, 1))
    assert first == again != other
    assert first == sorted(first)


def test_classes_share_the_chance(task, full):
    rates = {row.name: row.robust.value for row in full.verdict.classes}
    worst = min(rates, key=rates.get)
    gate = {"class.min": rates[worst] - 0.25, f"class.{worst}": {"min": rates[worst] + 0.3, "severity": "warning"}}
    report = decide_early(plan_of(task, gate))
    assert [gate.state for gate in report.gates] == ["held", "breached"]
    bounds = [confidence_sequence(r.robust.count, r.robust.n, N // 4, 0.005, 0.005 / 4) for r in report.verdict.classes]
    assert (report.gates[0].low, report.gates[0].high) == tuple(map(min, zip(*bounds, strict=True)))


def test_an_attack_with_its_own_limit_meets_all_that_are_right(task):
    report = decide_early(plan_of(task, {"robust.pgd": 0.02}))
    stage = report.cascade[1]
    assert (stage.attack, stage.tried) == ("pgd", report.verdict.clean.count)
    assert decide_early(plan_of(task, {"robust": 0.02})).cascade[1].tried < stage.tried


def test_clean_alone_needs_no_attack(task):
    report = decide_early(plan_of(task, {"clean": 0.2}))
    assert (report.cascade, report.verdict.robust, report.gates[0].state) == ([], None, "held")


def test_time_that_is_over_decides_nothing(task):
    plan = plan_of(task, {"robust": 0.55}, budget="0.000001s")
    report = decide_early(dataclasses.replace(plan))
    assert report.early.used == 4
    assert not report.gates[0].passed
    assert "takes" not in report.gates[0].message
    assert why_of(report) == "the time budget was exhausted"
    assert "decided the limits" not in report.to_json()


@pytest.mark.parametrize(
    ("gate", "says"),
    [
        ({}, "there is none"),
        ({"robust": 0.4, "layer.max-error": 1.0}, "layer.max-error needs the full audit"),
        ({"class.discrepancy": 0.4}, "needs the full audit"),
    ],
)
def test_what_cannot_be_decided_early(task, gate, says):
    with pytest.raises(UsageError, match=says):
        decide_early(plan_of(task, gate))


def test_refusals(task):
    with pytest.raises(UsageError, match="--alpha"):
        decide_early(plan_of(task, {"robust": 0.4}), alpha=1.5)
    with pytest.raises(UsageError, match="no attack"):
        decide_early(plan_of(task, {"robust": 0.4}, attack="none"))


def test_a_limit_that_may_be_left_out_is(task):
    absent = {name: {"max": 1.0, "allow_not_run": True} for name in ("layer.max-error", "class.no such class")}
    report = decide_early(plan_of(task, {"clean": 0.2, **absent}))
    assert [(gate.passed, gate.measured is None) for gate in report.gates] == [
        (True, False),
        (True, True),
        (True, True),
    ]


def test_an_interrupted_run_tells_what_it_has(task):
    told = []

    def stop(what, done, total):
        if what == "pgd":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decide_early(plan_of(task, {"robust": 0.55}), progress=stop, on_update=told.append)
    assert (told[-1].status, told[-1].early.used) == ("interrupted", 4)
    assert [stage.attack for stage in told[-1].cascade] == ["fgsm"]
    assert told[-1].gates[0].state == "undecided"
    assert why_of(told[-1]) == "the audit was interrupted"
    assert why_of(told[0]) == "the audit is still running"
    assert "decided the limits" not in told[-1].to_json()


def test_an_attack_that_nothing_was_left_for(task):
    """In some blocks and not in others: the record still names what broke each sample."""
    report = decide_early(plan_of(task, {"robust": 0.5}, eps=0.09))
    assert report.gates[0].state == "breached"
    rows = report.samples
    broken = [y == c and by is not None for y, c, by in zip(rows.label, rows.clean, rows.broken_by, strict=True)]
    assert [rows.broken_by.count(stage.attack) for stage in report.cascade] == [stage.broke for stage in report.cascade]
    assert sum(broken) == report.verdict.clean.count - report.verdict.robust.count


@pytest.fixture(scope="module")
def saved(full, tmp_path_factory):
    path = tmp_path_factory.mktemp("baseline") / "full.json"
    path.write_text(full.to_json())
    return str(path)


def weaker(task):
    """The task for a network with noise in its weights."""
    body, x, y = task
    other = copy.deepcopy(body)
    other[1].weight.data += 0.15 * torch.randn(4, 64, generator=torch.Generator().manual_seed(1))
    return other, x, y


def test_the_same_network_has_no_drop(task, saved):
    report = decide_early(plan_of(task, {"drop": 0.1, "drop.clean": {"max": 0.1}}, baseline=saved))
    assert [(gate.state, gate.measured, gate.decided_by) for gate in report.gates] == [("held", 0.0, "sequence")] * 2
    assert report.early.used < N / 4
    assert "against a network in memory" in report.gates[0].message


def test_a_drop_is_decided_from_fewer_samples_as_by_all(task, full, saved):
    other = weaker(task)
    after = run_audit(plan_of(other, {})).verdict
    drop, clean = (
        a.value - b.value for a, b in ((full.verdict.robust, after.robust), (full.verdict.clean, after.clean))
    )
    assert drop > 0.1
    report = decide_early(plan_of(other, {"drop": drop - 0.08, "drop.clean": clean + 0.08}, baseline=saved))
    assert [gate.state for gate in report.gates] == ["breached", "held"]
    assert report.early.used < N
    # A limit at the difference itself needs every sample, and then the difference is exact.
    last = decide_early(plan_of(other, {"drop": drop + 1e-9, "drop.clean": {"min": clean - 1e-9}}, baseline=saved))
    assert last.early.used == N
    for gate, exact in zip(last.gates, (drop, clean), strict=True):
        assert (gate.state, gate.measured) == ("held", pytest.approx(exact))
        assert (gate.low, gate.high) == pytest.approx((exact, exact))


def test_without_a_number_the_samples_are_those_of_the_baseline(task, tmp_path):
    """Also where the baseline has another number than an audit has by default, and was drawn with another seed."""
    gate = {"drop": 0.1, "drop.clean": {"min": 0.0}}  # the second limit needs every sample
    few = run_audit(plan_of(task, {}, limit=90, seed=5))
    path = tmp_path / "few.json"
    path.write_text(few.to_json())
    report = decide_early(plan_of(task, gate, baseline=str(path), limit=None))
    assert report.early.population == 90
    assert report.samples.index == few.samples.index
    assert report.data.fingerprint == few.data.fingerprint
    body, x, y = task
    fewer = plan_of((body, x[:80], y[:80]), gate, baseline=str(path), limit=None)
    with pytest.raises(UsageError, match="samples differ"):
        decide_early(fewer)


def test_a_drop_in_clean_accuracy_alone_needs_no_attack(task, saved):
    report = decide_early(plan_of(task, {"drop.clean": 0.1}, baseline=saved))
    assert (report.cascade, report.gates[0].state) == ([], "held")


def test_the_bounds_of_a_drop_are_those_of_the_samples_in_their_random_order(task, full, saved):
    """Blocks are sorted by place in the data set; the bets are made in the order in which samples are drawn."""
    other = weaker(task)
    plan = plan_of(other, {"drop": 0.4}, baseline=saved)
    report = decide_early(plan, alpha=0.1)
    used, rows = report.early.used, report.samples
    right = dict(zip(rows.index, by_sample.robust(rows), strict=True))
    before = by_sample.robust(full.samples)
    drawn = sample_order(plan)[:used]
    assert set(drawn) == set(rows.index)
    lost = np.array([int(before[place]) - int(right[place]) for place in drawn])
    low, high = difference_sequence(lost, N, 0.1)
    assert (report.gates[0].low, report.gates[0].high) == (low, high)


@pytest.mark.parametrize(
    ("change", "options", "says"),
    [
        ({}, {"limit": 400}, "samples differ"),
        ({}, {"eps": 0.03}, "eps differ"),
        ({}, {"norm": "l2"}, "norm differ"),
        ({}, {"attack": ["fgsm", "pgd:steps=4"]}, "attacks differ"),
        ({"samples": None}, {}, "no results of single samples"),
        ({"status": "interrupted"}, {}, "the baseline is not complete"),
        ({"early": Early(used=1, population=N, alpha=0.1, full_seconds=1)}, {}, "the baseline is of a --gate-only run"),
    ],
)
def test_a_baseline_of_another_protocol_is_refused(task, full, tmp_path, change, options, says):
    path = tmp_path / "b.json"
    path.write_text(full.model_copy(update=change).to_json())
    with pytest.raises(UsageError, match=f"--baseline .*{says}"):
        decide_early(plan_of(task, {"drop": 0.1}, baseline=str(path), **options))


def test_a_drop_needs_a_baseline(task):
    for options in ({}, {"gate_only": True}):
        with pytest.raises(UsageError, match="the limit drop compares with another report"):
            plan_of(task, {"drop": 0.1}, **options)
    allowed = {"clean": 0.2, "drop": {"max": 0.1, "allow_not_run": True}}
    assert [gate.passed for gate in decide_early(plan_of(task, allowed)).gates] == [True, True]


def test_every_accuracy_is_one_that_gate_only_decides():
    """A new metric of the unit accuracy needs a branch in `GateRule.decide`; without one, it is decided as another metric."""
    accuracies = {kind.name for kind in METRICS if kind.unit == "accuracy"}
    assert accuracies == {"clean", "robust", "robust.ATTACK", "proven", "class.min", "class.NAME"}
