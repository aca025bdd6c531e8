import io

import pytest
from rich.console import Console

from lsa_cli.errors import UsageError
from lsa_cli.report.gate import check, decision, is_breach
from lsa_cli.report.limits import Limit, limits_of, parse_limits
from lsa_cli.report.row import Proof
from lsa_cli.report.schema import CheckMade, Evidence, Finding
from lsa_cli.report.terminal import print_gates
from tests.report.example import example, rate


def one(limit, **changes):
    (result,) = check(example(**changes), limits_of(limit))
    return result


# In the example every share's interval is 0.05 to either side, every layer's mean 0.01.
SHARES = [
    ("clean", 0.9), ("robust", 0.3), ("robust.fgsm", 0.5), ("robust.pgd", 0.3), ("robust.gaussian", 0.9), ("class.min", 0.2),
    ("class.cat", 0.2), ("class.dog", 0.4), ("proven", 0.25),
]  # fmt: skip
ERRORS = [("layer.max-error", 0.8, 0.01), ("layer.relu1", 0.5, 0.01), ("class.discrepancy", 0.2, 0.05 * 2**0.5)]


@pytest.mark.parametrize(("metric", "measured"), SHARES)
def test_shares_must_reach_their_limit_with_the_whole_interval(metric, measured):
    results = {d: one({metric: measured + d}) for d in (-0.051, -0.049, 0.0, 0.049, 0.051)}
    states = [result.state for result in results.values()]
    assert states == ["held", "undecided", "undecided", "undecided", "breached"]
    assert [result.passed for result in results.values()] == [True, False, False, False, False]
    assert results[0.0].measured == pytest.approx(measured)
    assert (results[0.0].direction, results[0.0].decided_by) == ("at least", "bound")
    assert "these samples do not decide it" in results[0.049].message


@pytest.mark.parametrize(("metric", "measured", "half"), ERRORS)
def test_errors_must_stay_below_their_limit_with_the_whole_interval(metric, measured, half):
    states = [one({metric: measured + d}).state for d in (half + 1e-3, half - 1e-3, 1e-3 - half, -half - 1e-3)]
    assert states == ["held", "undecided", "undecided", "breached"]
    assert one({metric: measured}).direction == "at most"


@pytest.mark.parametrize(("metric", "measured"), [*SHARES, *(row[:2] for row in ERRORS)])
def test_the_point_decides_where_asked(metric, measured):
    way, sign = ("max", -1) if (metric, measured) not in SHARES else ("min", 1)
    for offset, passed in ((0.0, True), (-0.001 * sign, True), (0.001 * sign, False)):
        result = one({metric: {way: measured + offset, "by": "point"}})
        assert (result.passed, result.decided_by) == (passed, "point")
        assert result.state == ("held" if passed else "breached")


def test_a_limit_on_what_is_proven_needs_a_proof():
    without, left_out = example(), example()
    without.verdict.proof = None
    left_out.verdict.proof = Proof(robust=None, threat="linf 0.3", seconds=0.0, left_out="it takes too long")
    for report, why in ((without, "the audit was without --prove"), (left_out, "left out, because it takes too long")):
        (result,) = check(report, limits_of({"proven": 0.1}))
        assert (result.state, result.passed) == ("undecided", False)
        assert why in result.message
        assert check(report, limits_of({"proven": {"min": 0.1, "allow_not_run": True}}))[0].passed


def test_a_limit_may_look_the_other_way():
    assert one({"clean": {"max": 0.96}}).passed
    assert one({"clean": {"max": 0.84}}).state == "breached"
    assert one({"layer.relu1": {"min": 0.4}}).direction == "at least"


def test_the_worst_class_is_every_class():
    """Its interval: all classes reach a limit when the lowest lower end does."""
    report = example()
    report.verdict.classes[1].robust = rate(11, 50).model_copy(update={"low": 0.01})
    (result,) = check(report, limits_of({"class.min": 0.1}))
    assert (result.measured, result.low, result.high) == (0.2, 0.01, 0.25)
    assert result.state == "undecided"


def test_the_largest_upper_end_decides_whatever_row_has_the_largest_mean():
    """A layer with fewer samples reaches further than the one with the largest mean, and holds the limit in doubt."""
    report = example()
    rows = [row for o in report.outcomes if o.kind != "noise" and o.layers for row in o.layers.rows]
    for row in rows:
        first = row.name == rows[0].name
        row.mean, row.low, row.high = (0.90, 0.89, 0.91) if first else (0.89, 0.70, 1.08)
    (result,) = check(report, limits_of({"layer.max-error": 1.0}))
    assert (result.measured, result.low, result.high, result.state) == (0.90, 0.89, 1.08, "undecided")
    assert check(report, limits_of({"layer.max-error": 0.885}))[0].state == "breached"
    assert check(report, limits_of({"layer.max-error": 0.9}))[0].state == "undecided"
    # One layer under several attacks is an extreme too.
    same = [row for row in rows if row.name == rows[-1].name]
    assert len(same) > 1
    same[0].mean, same[0].low, same[0].high = 0.895, 0.894, 0.896
    (layer,) = check(report, limits_of({f"layer.{same[0].name}": 1.0}))
    assert (layer.measured, layer.low, layer.high) == (0.895, 0.894, 1.08)


@pytest.mark.parametrize("seed", range(5))
def test_an_extreme_holds_exactly_when_every_row_holds(seed):
    import random

    draw = random.Random(seed)
    report = example()
    for row in report.verdict.classes:
        value = draw.uniform(0.2, 0.8)
        row.robust = rate(0, 50).model_copy(
            update={"value": value, "low": value - draw.uniform(0, 0.2), "high": value + draw.uniform(0, 0.2)}
        )
    for limit in (0.1, 0.3, 0.5, 0.7, 0.9):
        each = [check(report, limits_of({f"class.{row.name}": limit}))[0] for row in report.verdict.classes]
        (worst,) = check(report, limits_of({"class.min": limit}))
        assert worst.passed == all(result.passed for result in each)
        assert (worst.state == "breached") == any(result.state == "breached" for result in each)


def test_the_discrepancy_reaches_as_far_as_any_two_classes():
    report = example()
    first, second = report.verdict.classes[:2]
    third = first.model_copy(update={"name": "third"})
    for row, ends in ((first, (0.50, 0.49, 0.51)), (second, (0.30, 0.29, 0.31)), (third, (0.32, 0.05, 0.60))):
        row.robust = rate(0, 50).model_copy(update=dict(zip(("value", "low", "high"), ends, strict=True)))
    report.verdict.classes = [first, second, third]
    (result,) = check(report, limits_of({"class.discrepancy": 0.4}))
    assert result.measured == pytest.approx(0.20)
    assert result.high == pytest.approx(0.18 + (0.01**2 + 0.27**2) ** 0.5)
    assert result.state == "undecided"


def test_the_last_line_says_what_was_decided():
    def said(limits):
        return decision(check(example(), limits_of(limits)))

    assert said({"clean": 0.5}) == "PASSED: 1 of 1 limit holds"
    assert said({"clean": 0.5, "robust": 0.1}) == "PASSED: 2 of 2 limits hold"
    three = {"clean": 0.5, "robust": 0.9, "class.min": 0.2}
    assert said(three) == "FAILED: 1 of 3 limits is breached, 1 is not decided"
    assert said({"clean": 0.5, "class.min": 0.2}) == "NOT DECIDED: 1 of 2 limits is not decided"
    warned = {"clean": 0.5, "robust": {"min": 0.9, "severity": "warning"}}
    assert said(warned) == "PASSED: 1 of 1 limit holds; 1 of 1 warning does not hold"


def test_an_interruption_is_nothing_that_a_limit_allows():
    (result,) = check(example(status="interrupted"), limits_of({"robust": {"min": 0.1, "allow_not_run": True}}))
    assert (result.passed, result.state) == (False, "undecided")


def test_counts_and_times_have_no_interval():
    for metric, measured in (("mvl", 1), ("mvl.relu2", 2), ("mvl.relu1", 0), ("seconds", 12.3)):
        result = one({metric: measured})
        assert (result.passed, result.measured, result.decided_by) == (True, measured, "point")
        if measured:
            assert one({metric: measured - 0.5}).state == "breached"
    assert "under fgsm, pgd" in one({"mvl.relu2": 0}).message


def test_evidence():
    found = [
        Finding(code=code, level=level, message="m", advice="a")
        for code, level in (("x", "doubtful"), ("y", "invalid"))
    ]
    made = [CheckMade(name="c", n=1, saw={})]

    def measured(level, *findings):
        evidence = Evidence(verdict="invalid" if findings else "trusted", findings=list(findings), checks=made)
        return one({f"evidence.{level}": 0}, evidence=evidence)

    assert measured("doubtful").passed
    assert measured("doubtful", *found).measured == 2
    assert measured("invalid", *found).measured == 1
    assert measured("invalid", found[0]).passed
    assert not measured("doubtful", found[0]).passed
    none = one({"evidence.doubtful": 0})
    assert (none.passed, none.measured) == (False, None)
    assert parse_limits([], "invalid") == {"evidence.invalid": Limit(max=0)}


def test_a_warning_breaks_no_build():
    report = example()
    warned = check(report, limits_of({"robust": {"min": 0.9, "severity": "warning"}, "clean": 0.1}))
    assert [result.passed for result in warned] == [False, True]
    assert not is_breach(warned)
    assert is_breach(check(report, limits_of({"robust": 0.9})))
    assert is_breach(check(report, limits_of({"robust": 0.3})))  # undecided


def test_what_was_not_run_passes_only_where_that_is_allowed():
    for limit in ({"robust.square": 0.1}, {"layer.gone": 0.1}):
        with pytest.raises(UsageError, match="in this audit"):
            one(limit)
    with pytest.raises(UsageError) as refused:
        one({"robust.square": 0.1})
    listed = str(refused.value).partition("there are ")[2].split(", ")
    assert len(listed) == len(set(listed)) > 1
    allowed = one({"robust.square": {"min": 0.1, "allow_not_run": True}})
    assert (allowed.passed, allowed.measured) == (True, None)
    assert allowed.message == "robust.square: square was not run on all samples, which this limit allows"
    console = Console(file=io.StringIO(), width=120)
    print_gates([allowed], console)
    assert console.file.getvalue() == f"Gate not measured: {allowed.message}\n"
    assert decision([allowed, one({"clean": 0.5})]) == "PASSED: 1 of 2 limits holds, 1 was not measured"
    assert not one({"robust": 0.0}, budget=False).passed


def test_noise_does_not_count_as_a_layers_error():
    assert one({"layer.max-error": 0.85}).passed  # the noise's 0.9 is no attack's


def test_what_cannot_be_decided_is_no_pass():
    assert not one({"robust": 0.0}, budget=False).passed
    assert not one({"clean": 0.0}, status="interrupted").passed
    empty = one({"class.min": 0.0}, empty_class=True)
    assert not empty.passed
    assert empty.measured is None
    assert "class cat has no samples" in empty.message
    blind = one({"layer.max-error": 9.0}, blind_layer=True)
    assert not blind.passed
    assert "no defined measure" in blind.message


@pytest.mark.parametrize(
    ("limit", "says"),
    [
        ({"robust.pdg": 0.1}, "did you mean 'pgd'"),
        ({"class.cow": 0.1}, "unknown class in this audit 'cow'"),
        ({"layer.relu9": 0.1}, "did you mean 'relu"),
        ({"rubost": 0.1}, "unknown gate metric"),
        ({"robust": 40.0}, "such as 0.4"),
        ({"layer.relu1": -1.0}, "negative"),
        ({"evidence.good": 0}, "unknown gate metric"),
        ({"robust": {"mni": 0.4}}, "did you mean 'min'"),
        ({"robust": {"min": 0.4, "max": 0.5}}, "either min or max"),
        ({"robust": {"severity": "error"}}, "either min or max"),
        ({"robust": {"min": 0.4, "severity": "fatal"}}, "severity"),
        ({"robust": {"min": "much"}}, "not a number"),
        ({"robust": "much"}, "not a number"),
    ],
)
def test_limits_on_what_the_report_does_not_know(limit, says):
    with pytest.raises(UsageError, match=says):
        one(limit)


def test_limits_as_typed():
    assert parse_limits(["robust=0.4", "class.a=b=1/5"]) == {"robust": Limit(min=0.4), "class.a=b": Limit(min=0.2)}
    with pytest.raises(UsageError, match="METRIC=VALUE"):
        parse_limits(["robust"])
    with pytest.raises(UsageError, match="given twice"):
        parse_limits(["robust=0.4", "robust=0.5"])


def test_a_perfect_share_meets_a_limit_of_one():
    assert rate(10, 10).value == 1.0
