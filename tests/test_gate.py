import pytest

from lsa_cli.errors import UsageError
from lsa_cli.report.gate import check, parse_limits
from tests.report.example import example, rate


def one(limit, **changes):
    ((metric, value),) = limit.items()
    (result,) = check(example(**changes), {metric: value})
    return result


@pytest.mark.parametrize(
    ("metric", "measured"),
    [
        ("clean", 0.9),
        ("robust", 0.3),
        ("robust.fgsm", 0.5),
        ("robust.pgd", 0.3),
        ("robust.gaussian", 0.9),
        ("class.min", 0.2),
        ("class.cat", 0.2),
        ("class.dog", 0.4),
    ],
)
def test_shares_must_reach_their_limit(metric, measured):
    assert one({metric: measured}).passed
    assert not one({metric: measured + 0.01}).passed
    assert one({metric: measured}).measured == pytest.approx(measured)
    assert one({metric: measured}).direction == "at least"


@pytest.mark.parametrize(
    ("metric", "measured"), [("layer.max-error", 0.8), ("layer.relu1", 0.5), ("class.discrepancy", 0.2)]
)
def test_errors_must_stay_below_their_limit(metric, measured):
    assert one({metric: measured}).passed
    assert not one({metric: measured - 0.01}).passed
    assert one({metric: measured}).direction == "at most"


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
    ],
)
def test_limits_on_what_the_report_does_not_know(limit, says):
    with pytest.raises(UsageError, match=says):
        one(limit)


def test_limits_as_typed():
    assert parse_limits(["robust=0.4", "class.a=b=1/5"]) == {"robust": 0.4, "class.a=b": 0.2}
    with pytest.raises(UsageError, match="METRIC=VALUE"):
        parse_limits(["robust"])
    with pytest.raises(UsageError, match="given twice"):
        parse_limits(["robust=0.4", "robust=0.5"])


def test_a_perfect_share_meets_a_limit_of_one():
    assert rate(10, 10).value == 1.0
