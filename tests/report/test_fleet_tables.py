"""The table of a fleet: the order, and who is ahead beyond noise."""

import json
import re
from itertools import combinations

import numpy as np
from scipy.stats import binomtest

from lsa_cli.report.fleet import make_fleet
from lsa_cli.report.fleet_view import one_line, rows, tables
from lsa_cli.report.row import Rate
from lsa_cli.report.schema import Evidence, GateResult, Samples
from lsa_cli.report.triage import needs_full
from tests.report.example import example


def report_of(right, evidence="trusted", **changes):
    """A report in which these samples are robust. right: (N,) bool."""
    n = len(right)
    samples = Samples(
        index=list(range(n)), label=[0] * n, clean=[0] * n, broken_by=[None if r else "pgd" for r in right], look=[None] * n,
        margin=[None] * n, distance=[None] * n,
    )  # fmt: skip
    report = example(samples=samples, evidence=Evidence(verdict=evidence, findings=[], checks=[]), **changes)
    share = float(np.mean(right))
    report.verdict.robust = Rate(
        count=int(sum(right)), n=n, value=share, low=max(0, share - 0.1), high=min(1, share + 0.1)
    )
    return report


def fleet_of(reports):
    return make_fleet("lsa 0", reports, {name: f"{name}.audit.json" for name in reports})


def test_the_order_and_the_tests_are_those_of_the_definition():
    draw = np.random.default_rng(0)
    n, shares = 200, {"a": 0.3, "b": 0.5, "c": 0.52, "d": 0.9}
    right = {name: draw.random(n) < share for name, share in shares.items()}
    fleet = fleet_of({name: report_of(flags) for name, flags in right.items()})
    order = [row.model for row in fleet.rows]
    assert order == sorted(right, key=lambda name: -right[name].mean())

    def p(one, other):
        won, lost = (right[one] & ~right[other]).sum(), (right[other] & ~right[one]).sum()
        return binomtest(int(won), int(won + lost)).pvalue

    values = sorted((p(*pair), pair) for pair in combinations(right, 2))
    beyond = set()
    for place, (value, pair) in enumerate(values):  # Holm
        if value > 0.05 / (len(values) - place):
            break
        beyond.add(frozenset(pair))
    assert 0 < len(beyond) < len(values)
    for row in fleet.rows:
        others = [name for name in right if frozenset((name, row.model)) in beyond]
        ahead = sum(right[row.model].mean() > right[name].mean() for name in others)
        assert (row.ahead_of, row.behind) == (ahead, len(others) - ahead)
        if row.model != order[0]:
            assert abs(row.best.p - p(row.model, order[0])) < 1e-12
            assert row.best.beyond_noise == (frozenset((row.model, order[0])) in beyond)
    assert "no model is ahead" not in str(list(tables(fleet))) or fleet.rows[1].behind == 0


def test_equal_models_are_seldom_told_apart():
    """The false alarm rate of a whole fleet, the choice of the best one included."""
    draw = np.random.default_rng(1)
    alarms = 0
    for _ in range(200):
        found = fleet_of({str(name): report_of(draw.random(60) < 0.5) for name in range(6)})
        alarms += any(row.behind for row in found.rows)
    assert alarms <= 20  # at a rate of 5%, P(more than 20 of 200) < 0.001


def test_other_protocols_and_invalid_numbers_are_not_compared():
    good, bad = np.arange(100) < 40, np.arange(100) < 90
    other = report_of(bad)
    other.protocol.threat.eps = 0.1
    reports = {"a": report_of(good), "b": report_of(good), "weak": other, "masked": report_of(bad, "invalid")}
    fleet = fleet_of(reports)
    assert [(row.model, row.group) for row in fleet.rows] == [("a", 0), ("b", 0), ("masked", 0), ("weak", 1)]
    assert [row.behind for row in fleet.rows] == [0, 0, None, 0]
    assert one_line(fleet).startswith("4 models audited; best in table 1 (linf 0.3, npz:mnist.npz (test), 100 ")
    assert [len(table.rows) for table in tables(fleet)] == [3, 1]
    assert len({tuple(row) for row in rows(fleet)}) == 1  # all rows of the table have the same columns
    assert json.loads(fleet.to_json())["rows"][1]["best"]["p"] == 1.0


def with_interval(value, half, evidence="trusted", gate=None, **changes):
    report = report_of([True] * 10, evidence, **changes)
    report.verdict.robust = Rate(count=0, n=100, value=value, low=value - half, high=value + half)
    if gate is not None:
        state = {"held": (True, value), "breached": (False, value), "undecided": (False, None)}[gate]
        report.gates = [GateResult(metric="robust", limit=0.5, direction="at least", measured=state[1], passed=state[0],
                                   message="", low=value - half, high=value + half)]  # fmt: skip
    return report


def test_a_full_audit_is_for_what_can_be_the_best_one():
    quick = {
        "a": with_interval(0.6, 0.05), "b": with_interval(0.51, 0.05), "c": with_interval(0.3, 0.05),
        "d": with_interval(0.9, 0.05, "invalid"),
    }  # fmt: skip
    assert needs_full(quick, {}) == ["a", "b"]
    # In full, the first one falls below the third one's quick number, which is an upper bound of its own.
    full = {"a": with_interval(0.2, 0.05), "b": with_interval(0.25, 0.05)}
    assert needs_full(quick, full) == ["c"]
    assert needs_full(quick, {**full, "c": with_interval(0.1, 0.05)}) == []


def test_a_full_audit_is_for_limits_that_are_not_breached():
    """A limit that holds under quick attacks may be breached by stronger ones; a breached one stays breached."""
    quick = {
        "best": with_interval(0.9, 0.02, gate="held"), "holds": with_interval(0.6, 0.05, gate="held"),
        "open": with_interval(0.5, 0.05, gate="undecided"), "lost": with_interval(0.2, 0.05, gate="breached"),
    }  # fmt: skip
    assert needs_full(quick, {}) == ["best", "holds", "open"]


def test_the_last_line_says_that_the_evidence_of_the_best_one_is_doubtful():
    reports = {"a": report_of([True] * 8 + [False] * 2, evidence="doubtful"), "b": report_of([True] * 5 + [False] * 5)}
    assert re.search(r"best: a, robust accuracy 80\.0% \[[^]]+\], evidence doubtful", one_line(fleet_of(reports)))
    reports["a"] = report_of([True] * 8 + [False] * 2)
    assert "doubtful" not in one_line(fleet_of(reports))


def test_the_last_line_names_the_best_one_of_each_data_set():
    reports = {"a": report_of([True] * 8 + [False] * 2), "b": report_of([True] * 5 + [False] * 5)}
    other = report_of([True] * 3 + [False] * 7)
    other.data.source, other.data.fingerprint = "npz:other.npz", "cd" * 31 + "00"
    line = one_line(fleet_of({**reports, "c": other}))
    assert re.findall(r"best in table (\d) \((.+?)\): (\w), robust accuracy (\S+)%", line) == [
        ("1", fleet_of(reports).rows[0].protocol, "a", "80.0"), ("2", fleet_of({"c": other}).rows[0].protocol, "c", "30.0"),
    ]  # fmt: skip
    assert "best: a, robust accuracy 80.0%" in one_line(fleet_of(reports))
    fleet = make_fleet(
        "lsa 0", {**reports, "c": other}, dict.fromkeys("abc", ""), kinds={"a": "full", "b": "full", "c": "quick"}
    )
    assert "best: a, robust accuracy 80.0%" in one_line(fleet)
    assert [row.audit for row in fleet.rows] == ["full", "full", "quick"]
