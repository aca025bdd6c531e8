import io
import re

import pytest
from pyarrow import parquet
from rich.console import Console

from lsa_cli.errors import UsageError
from lsa_cli.report.compare import compare
from lsa_cli.report.comparison import print_comparison
from lsa_cli.report.comparison_html import render
from lsa_cli.report.gate import check
from lsa_cli.report.row import Draws, Rate
from lsa_cli.report.schema import Evidence, Samples
from lsa_cli.report.sequential import decide_in_order, in_words
from lsa_cli.report.tables import write_samples
from lsa_cli.stats import detectable_pairs, detectable_shares, mcnemar, wilson
from tests.report.example import example, rate


def held_by(flags):
    return "".join("01"[bool(flag)] for flag in flags)


def paired(robust, clean=None, pgd=None, **changes):
    """The example, with a verdict for each of 100 samples; the first 50 are cats."""
    report = example(**changes)
    label = [0] * 50 + [1] * 50
    clean = [True] * 100 if clean is None else clean
    report.samples = Samples(
        index=list(range(100)), label=label, clean=[y if right else 1 - y for y, right in zip(label, clean, strict=True)],
        broken_by=[None if whole else "pgd" for whole in robust], look=[None] * 100, margin=[None] * 100, distance=[None] * 100,
        held={"pgd": held_by(robust if pgd is None else pgd)},
    )  # fmt: skip
    report.verdict.robust = rate(sum(robust), 100)
    for row, flags in zip(report.verdict.classes, (robust[:50], robust[50:]), strict=True):
        row.robust = rate(sum(flags), 50)
    return report


def by_label(found):
    return {change.label: change for change in found.changes}


def test_the_same_report_twice_changes_nothing():
    found = compare(paired([True] * 100), paired([True] * 100))
    assert not any(change.beyond_noise for change in found.changes)
    assert found.regressions == []
    assert found.vulnerable == []


def test_columns_of_samples_have_types_where_nothing_broke(tmp_path):
    write_samples(paired([True] * 100), str(tmp_path / "s.Parquet"))
    schema = parquet.read_schema(tmp_path / "s.Parquet")
    kinds = {name: schema.field(name).type for name in ("broken_by", "look", "margin")}
    assert [str(kind) for kind in kinds.values()] == ["large_string", "int64", "double"]


def test_samples_are_paired_by_place():
    before = paired([True] * 60 + [False] * 40)
    after = paired([True] * 40 + [False] * 20 + [True] * 5 + [False] * 35)
    changes = by_label(compare(before, after))
    robust, cat, dog = changes["robust"], changes["class cat"], changes["class dog"]
    assert (robust.won, robust.lost, robust.p) == (5, 20, mcnemar(5, 20))
    assert (cat.won, cat.lost, dog.won, dog.lost) == (0, 10, 5, 10)
    assert (changes["accuracy under pgd"].won, changes["accuracy under pgd"].lost) == (5, 20)
    assert changes["accuracy under fgsm"].won is None  # not recorded sample by sample here: by intervals
    assert changes["clean"].p == 1.0


def test_rows_of_a_table_share_the_chance():
    """5 tests in the accuracy table: p = 0.0039 is beyond 0.05 / 5, p = 0.016 is not; both are below 0.05."""
    for lost, beyond in ((9, True), (7, False)):
        found = compare(paired([True] * 100), paired([False] * lost + [True] * (100 - lost)))
        robust = by_label(found)["robust"]
        assert (robust.p < 0.05, robust.beyond_noise) == (True, beyond)
        assert ("robust" in found.regressions) == beyond


def test_the_smallest_differences_that_could_have_been_found():
    """At the level of the row: 6 tests share the 5%. Unpaired rows go by their shares, and layers have none."""
    found = compare(paired([True] * 100), paired([False] * 9 + [True] * 91))
    changes = by_label(found)
    assert changes["robust"].detectable == detectable_pairs(100, 9, 0.05 / 6)
    fgsm = changes["accuracy under fgsm"]
    assert fgsm.detectable == detectable_shares(fgsm.old, fgsm.new, 100, 0.05 / 6)
    assert changes["class cat"].detectable == detectable_pairs(50, 9, 0.05 / 2)
    assert changes["relu1 under fgsm"].detectable is None
    sentence = (
        f"the smallest differences that these 100 samples could have found (power 80%): clean accuracy "
        f"{100 * changes['clean'].detectable:.1f} points, robust accuracy {100 * changes['robust'].detectable:.1f} points"
    )
    shown = Console(width=160, file=io.StringIO())
    print_comparison(paired([True] * 100), paired([True] * 100), found, shown)
    assert sentence in shown.file.getvalue()
    page = render(paired([True] * 100), paired([True] * 100), found)
    assert sentence.capitalize() in re.sub("<[^>]*>", "", page)  # terms in it are marked


def wide(robust):
    """A report with ten classes, four layers and three attacks. robust: (100,) flags."""
    report = paired(robust)
    names = [f"class{number}" for number in range(10)]
    report.subject.class_names = names
    report.samples.label = [place % 10 for place in range(100)]
    report.samples.clean = list(report.samples.label)
    row = report.verdict.classes[0]
    report.verdict.classes = [
        row.model_copy(update={"name": name, "robust": rate(sum(robust[number::10]), 10)})
        for number, name in enumerate(names)
    ]
    pgd = report.outcomes[1]
    layers = [pgd.layers.rows[0].model_copy(update={"name": f"relu{number}"}) for number in range(4)]
    for layer in layers:
        layer.mean, layer.low, layer.high = (0.2, 0.19, 0.21) if robust[0] else (0.7, 0.69, 0.71)
    own = pgd.layers.model_copy(update={"rows": layers, "mvl": ["relu1"] if robust[0] else ["relu2"], "by_class": None})
    report.outcomes = [
        pgd.model_copy(update={"name": name, "spec": name, "layers": own, "classes": report.verdict.classes})
        for name in ("fgsm", "pgd", "t-pgd")
    ]
    return report


def test_a_comparison_of_four_layers_and_ten_classes_fits_on_a_screen():
    shown = shown_by(wide([False] * 100), wide([True] * 100))
    lines = shown.splitlines()
    assert len(lines) <= 40
    assert sum(line.split()[:1] == [f"class{number}"] for line in lines for number in range(10)) == 10
    assert sum(line.split()[:1] == [f"relu{number}"] for line in lines for number in range(4)) == 4
    assert "classes: 10 better; layers: 12 move less" in shown
    assert "< 0.001" in shown
    assert "e-" not in shown.replace("relative-error", "")


def test_what_is_proven_is_compared_sample_by_sample_where_both_reports_have_a_proof():
    old, new = paired([True] * 100), paired([True] * 100)
    for report, count in ((old, 60), (new, 40)):
        report.samples.proven = [place < count for place in range(100)]
        report.verdict.proof.robust = rate(count, 100)
    proven = by_label(compare(old, new))["proven"]
    assert (proven.old, proven.new, proven.won, proven.lost, proven.beyond_noise) == (0.6, 0.4, 0, 20, True)
    assert "proven" in compare(old, new).regressions
    assert "proven" in shown_by(old, new)
    new.verdict.proof = None
    found = compare(old, new)
    assert "proven" not in by_label(found)
    assert (
        found.one_proof
        == "only the old report has a proof: 60.0% of all samples are proven robust, which is not compared"
    )
    assert found.one_proof in shown_by(old, new)
    assert compare(old, old).one_proof is None


def shown_by(old, new):
    console = Console(file=io.StringIO(), width=200)
    print_comparison(old, new, compare(old, new), console)
    return console.file.getvalue()


def test_what_changed_comes_first_and_only_a_fall_is_a_regression():
    found = compare(paired([False] * 100), paired([True] * 100))
    assert [change.beyond_noise for change in found.changes] == sorted(
        (change.beyond_noise for change in found.changes), reverse=True
    )
    assert found.changes[0].beyond_noise
    assert found.regressions == []
    assert {"robust", "class cat"} <= set(compare(paired([True] * 100), paired([False] * 100)).regressions)


def test_without_samples_the_intervals_decide():
    """Newcombe 1998, method 10, from the Wilson intervals 56/70 and 48/80: 0.2, 95% [0.0524, 0.3339] (his table II)."""
    from lsa_cli.report.measurement import Measurement, difference

    gap = difference(Measurement(56 / 70, *wilson(56, 70)), Measurement(48 / 80, *wilson(48, 80)))
    assert (gap.value, gap.low, gap.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)
    after = example()
    after.verdict.robust = Rate(count=5, n=100, value=0.05, low=0.02, high=0.1)
    assert compare(example(), after).regressions == ["robust"]


def test_layers_and_their_most_vulnerable():
    after = example()
    layers = after.outcomes[0].layers
    layers.rows[0].mean, layers.mvl = 0.7, ["relu1"]
    found = compare(example(), after)
    relu1 = by_label(found)["relu1 under fgsm"]  # sd 0.1 of 100 samples: 0.2 are 14 standard errors
    assert relu1.beyond_noise
    assert [(row.attack, row.new, row.lost) for row in found.vulnerable] == [("fgsm", ["relu1"], ["relu2"])]
    assert found.regressions == []
    layers.rows[0].name = "other"
    found = compare(example(), after)
    assert (found.layers_only_in_old, found.layers_only_in_new) == ([], ["other"])  # pgd still has relu1


def test_a_lower_verdict_on_the_evidence_is_a_regression():
    def of(verdict):
        return example(evidence=Evidence(verdict=verdict, findings=[], checks=[]))

    assert compare(of("trusted"), of("doubtful")).regressions == ["evidence: trusted -> doubtful"]
    assert compare(of("doubtful"), of("trusted")).regressions == []


def test_other_protocols_are_refused_by_name():
    def changed(part, **values):
        report = example()
        return report.model_copy(update={part: getattr(report, part).model_copy(update=values)})

    threat = example().protocol.threat
    for other, says in (
        (changed("protocol", threat=threat.model_copy(update={"eps": 0.1})), "eps differ"),
        (changed("protocol", threat=threat.model_copy(update={"norm": "l2"})), "norm differs"),
        (changed("protocol", measure="l2"), "measure differs"),
        (
            changed("data", fingerprint="ef" * 32, n=50),
            r"samples differ \(npz:mnist.npz \(test\), 100 of .*, seed 0\), fingerprint c.* against npz:mnist.npz \(test\), 50 of",
        ),
        (changed("subject", class_names=["dog", "cat"]), r"classes differ \("),
        (example(budget=False), "attacks differ"),
        (example(status="interrupted"), "second is not complete"),
    ):
        with pytest.raises(UsageError, match=says):
            compare(example(), other)


def test_the_gate_is_no_part_of_a_comparison():
    gated = example()
    gated.gates = check(gated, {"robust": 0.9})
    assert compare(example(), gated).regressions == []


def test_several_passes_are_no_other_attack_where_a_network_without_chance_becomes_random():
    old, new = paired([True] * 100), paired([True] * 100)
    for report, passes in ((old, 1), (new, 10)):
        for outcome in report.outcomes:
            outcome.settings["eot"] = passes
    with pytest.raises(UsageError, match="attacks differ"):
        compare(old, new)
    new.verdict.clean_draws = Draws(n=10, mean=1.0, sd=0.0, worst=rate(100, 100))
    assert compare(old, new).regressions == []


def test_what_a_layer_moves_by_itself_is_no_change():
    old, new = example(), example()
    outcome = next(outcome for outcome in new.outcomes if outcome.layers is not None)
    row = outcome.layers.rows[0]
    row.mean, row.noise_floor = row.mean + 0.5, 0.5
    found = [
        c for c in compare(old, new).changes if c.table == "layer" and c.attack == outcome.name and c.name == row.name
    ]
    assert found[0].new == pytest.approx(found[0].old)


def test_where_a_network_is_random_it_says_which_numbers_are_means():
    """20 of 100 won and none lost in the first evaluation, and 12 points in the mean: both stand, and are told apart."""
    old, new = paired([False] * 70 + [True] * 30), paired([True] * 20 + [False] * 50 + [True] * 30)
    assert compare(old, new).by_chance is None
    new.verdict.robust = rate(42, 100)
    new.verdict.draws = new.verdict.clean_draws = Draws(n=10, mean=0.42, sd=0.02, worst=rate(20, 100))
    found = compare(old, new)
    assert (found.old.draws, found.new.draws) == (None, 10)
    shown = Console(width=160, file=io.StringIO())
    print_comparison(old, new, found, shown)
    words = "means over 10 evaluations; won, lost, p and classes are of the first evaluation; layers are above their noise floor"
    for page in (shown.file.getvalue(), render(old, new, found)):
        assert "+12.0" in page
        assert words in page


def test_how_few_samples_decide_in_order():
    """100 samples of which 30 are lost, and 2 of another attack: an early decision, and one that all samples must make."""
    old, new = paired([True] * 100), paired([False] * 30 + [True] * 70)
    rows = {row.name: row for row in decide_in_order(old, new)}
    assert set(rows) == {"clean", "robust", "accuracy under pgd"}
    assert (rows["clean"].used, rows["clean"].n, rows["clean"].better) == (100, 100, "neither")
    assert (rows["robust"].better, rows["robust"].used < 60) == ("old", True)
    mirrored = {row.name: row for row in decide_in_order(new, old)}
    assert (mirrored["robust"].better, mirrored["robust"].used) == ("new", rows["robust"].used)
    one = decide_in_order(old, paired([False] + [True] * 99))
    assert [row.better for row in one] == ["neither", "old", "old"]
    assert "robust: only all 100 samples tell that the old one is better" in in_words(one)


def test_without_results_of_single_samples_nothing_is_decided_in_order():
    with pytest.raises(UsageError, match="the second report has no results of single samples"):
        decide_in_order(paired([True] * 100), example())
