"""The consistency study on hand-made reports: matrix, classes weak everywhere, where stronger attacks gain."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from lsa_cli.errors import UsageError
from lsa_cli.report import view
from lsa_cli.report.consistency import consistency, print_consistency, sentences
from lsa_cli.report.schema import AttackPair, ClassRow, Stage
from tests.cli.conftest import lsa  # noqa: F401  a fixture
from tests.report.example import example, outcome, rate

NAMES = ["a", "b", "c", "d"]


def report(checkpoint, pairs=(), **attacks):
    """attacks: robust samples of 100 by class for each attack; None: no sample of that class."""
    made = example()
    outcomes = []
    for name, counts in attacks.items():
        robust = [rate(0, 0) if count is None else rate(count, 100) for count in counts]
        rows = [
            ClassRow(name=label, clean=rate(100, 100), robust=share, target=None, concentration=None)
            for label, share in zip(NAMES, robust, strict=True)
        ]
        outcomes.append(outcome(name, "budget", 50, (0.1, 0.2), rows, NAMES))
    subject = made.subject.model_copy(update={"checkpoint": checkpoint, "class_names": list(NAMES)})
    return made.model_copy(update={"subject": subject, "outcomes": outcomes, "pairs": list(pairs)})


def pair(gain, share):
    return AttackPair(weaker="fgsm", stronger="pgd", spearman=None, gain=gain, gain_on_weak_classes=share)


def study():
    return [
        report("one.pt", [pair(30, 0.8)], fgsm=[60, 20, 50, 30], pgd=[50, 5, 40, 10]),
        report("two.pt", [pair(10, 0.4), pair(0, None)], pgd=[80, 10, 5, 70]),
    ]


def test_the_matrix_is_that_of_rank_correlations():
    found = consistency(study())
    assert [(v.model, v.attack) for v in found.vectors] == [("one.pt", "fgsm"), ("one.pt", "pgd"), ("two.pt", "pgd")]
    # Ranks: 4 1 3 2, 4 1 3 2 and 4 2 1 3. Of the first and the last: 1 - 6 * (0 + 1 + 4 + 1) / (4 * 15).
    expected = np.array([[1, 1, 0.4], [1, 1, 0.4], [0.4, 0.4, 1]])
    np.testing.assert_allclose(found.correlations, expected)
    assert found.least == pytest.approx(0.4)


def test_classes_that_are_weak_everywhere_and_where_attacks_gain():
    found = consistency(study())
    assert found.weak_everywhere == ("b",)  # below the median: b, d; b, d; b, c
    assert found.weak_share == pytest.approx((30 * 0.8 + 10 * 0.4) / 40)
    assert len(found.gains) == 2


def test_a_class_without_samples_is_weak_nowhere():
    found = consistency([report("one.pt", fgsm=[60, None, 50, 30], pgd=[50, None, 40, 10])])
    assert found.weak_everywhere == ("d",)
    assert found.correlations[0, 1] == pytest.approx(1)
    assert found.weak_share is None
    assert not any("gain" in line for line in sentences(found))


def test_vectors_that_do_not_vary_have_no_correlation():
    found = consistency([report("one.pt", fgsm=[60, 20, 50, 30], pgd=[0, 0, 0, 0])])
    assert np.isnan(found.correlations[0, 1])
    assert found.least is None
    assert found.weak_everywhere == ("b", "d")  # what does not vary says nothing of classes
    assert consistency([report("one.pt", fgsm=[0, 0, 0, 0], pgd=[0, 0, 0, 0])]).weak_everywhere == ()


def test_what_has_no_order_to_compare_is_refused():
    other = report("two.pt", pgd=[80, 10, 5, 70])
    other.subject.class_names[0] = "z"
    with pytest.raises(UsageError, match=r"two.pt has other classes than one.pt"):
        consistency([report("one.pt", fgsm=[60, 20, 50, 30]), other])
    with pytest.raises(UsageError, match="fewer than two attacks"):
        consistency([report("one.pt", fgsm=[60, 20, 50, 30])])


def test_the_command(lsa):  # noqa: F811
    for name, made in zip("ab", study(), strict=True):
        with open(f"{name}.json", "w") as file:
            file.write(made.to_json())
    result = lsa("compare", "a.json", "b.json", "a.json")
    assert result.code == 0, result.err
    assert "one.pt (1)" in result.out
    assert "one.pt (2)" in result.out
    assert "classes below the median everywhere: b" in result.out
    assert "Spearman correlation of +0.40" in result.out
    assert "of what stronger attacks gain, 74.3% falls" in result.out  # (24 + 4 + 24) / 70
    assert lsa("compare", "a.json", "--consistency").out.count("one.pt") == 3  # two attacks, and one gain
    assert lsa("compare", "a.json").code == 2
    assert "the reports cannot be compared" in lsa("compare", "a.json", "b.json").err


def test_the_tables_as_json(lsa, tmp_path):  # noqa: F811
    for name, made in zip("ab", study(), strict=True):
        (tmp_path / f"{name}.json").write_text(made.to_json())
    found = consistency(study())
    result = lsa("compare", "a.json", "b.json", "--consistency", "--json", "-")
    assert result.code == 0, result.err
    content = json.loads(result.out)
    assert content["models"] == ["one.pt", "two.pt"]
    assert content["classes"] == list(found.classes)
    assert content["attacks"] == [
        {"model": vector.model, "attack": vector.attack, "robust": vector.values.tolist()} for vector in found.vectors
    ]
    assert content["spearman"] == found.correlations.tolist()
    assert content["weak_everywhere"] == ["b"]
    assert content["share_on_weak_classes"] == pytest.approx(28 / 40)
    assert [gain["gain"] for gain in content["gains"]] == [gain.gain for gain in found.gains]
    assert lsa("compare", "a.json", "b.json", "a.json", "--json", "x.json").code == 0
    assert json.loads((tmp_path / "x.json").read_text())["models"] == ["one.pt (1)", "two.pt", "one.pt (2)"]
    refused = lsa("compare", "a.json", "b.json", "a.json", "--json", "a.json")
    assert (refused.code, "is what is read here" in refused.err) == (2, True)


def test_what_is_no_number_is_null():
    made = report("one.pt", fgsm=[60, None, 50, 30], pgd=[0, 0, 0, 0])
    content = json.loads(consistency([made]).to_json())
    assert content["attacks"][0]["robust"][1] is None
    assert content["spearman"][0][1] is None


def test_a_narrow_terminal_leaves_out_classes_and_no_column_of_the_same_name():
    made = report("one.pt", fgsm=[60, 20, 50, 30], pgd=[50, 10, 40, 30])
    made.subject.class_names = ["attack", "b", "c", "attack"]
    shown = Console(width=32, file=io.StringIO())
    print_consistency(consistency([made]), shown)
    rows = [line.split() for line in shown.file.getvalue().splitlines()]
    assert ["model", "attack"] in [row[:2] for row in rows]
    assert ["1", "one.pt", "fgsm"] in [row[:3] for row in rows]
    assert ["columns", "left", "out"] in [row[:3] for row in rows]


def test_an_attack_of_the_cascade_that_no_sample_is_left_for_has_no_row():
    report = example()
    first = Stage(attack="pgd", spec="pgd", settings={}, tried=5, broke=1, robust=rate(4, 10), seconds=1.0)
    idle = first.model_copy(update={"attack": "idle", "tried": 0, "broke": 0})
    both = view.cascade(report.model_copy(update={"cascade": [first, idle]}))
    assert [row[0] for row in both.rows] == [first.attack]
    assert both.caption.endswith("; without a sample to run on: idle")
    alone = view.cascade(report.model_copy(update={"cascade": [first]}))
    assert "without a sample" not in alone.caption
