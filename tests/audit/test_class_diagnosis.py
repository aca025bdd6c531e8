import numpy as np
import pytest

from lsa_cli.auditing.class_diagnosis import ClassDiagnosis, compare_attacks, summarise

Y = np.array([0, 0, 0, 0, 1, 1, 2, 2])
CLEAN = np.array([0, 0, 0, 1, 1, 1, 2, 0])
ADVERSARIAL = np.array([1, 1, 2, 0, 1, 0, 2, 2])
NAMES = ("cat", "dog", "fox", "yak")


@pytest.fixture
def diagnosis():
    return ClassDiagnosis(Y, CLEAN, ADVERSARIAL, np.ones(8, dtype=bool))


def test_robust_is_right_clean_and_not_fooled(diagnosis):
    # Sample 3 is wrong clean and right under attack, sample 7 too: neither is robust.
    assert diagnosis.robust.tolist() == [False, False, False, False, True, False, True, False]


def test_what_leaves_the_budget_gains_nothing():
    counted = np.array([True, False, True, True, True, False, True, True])
    robust = ClassDiagnosis(Y, CLEAN, ADVERSARIAL, counted).robust
    assert robust.tolist() == [False, True, False, False, True, True, True, False]


def test_confusion_counts_the_samples_right_clean(diagnosis):
    table = diagnosis.confusion(4)
    assert table.tolist() == [[0, 2, 1, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert table.sum() == diagnosis.right.sum()
    assert np.trace(table) == diagnosis.robust.sum()


def test_rows_and_summary(diagnosis):
    cat, dog, fox, yak = diagnosis.rows(NAMES)
    assert (cat.clean.count, cat.clean.n, cat.robust.count) == (3, 4, 0)
    assert (cat.target, cat.concentration) == ("dog", pytest.approx(2 / 3))
    assert (fox.robust.value, fox.target) == (0.5, None)
    assert yak.robust.value is None
    assert yak.robust.low is None
    summary = summarise([cat, dog, fox, yak], np.array([1.0, 2.0, 3.0, 4.0]))
    values = np.array([0.0, 0.5, 0.5])
    assert (summary.worst_class, summary.worst, summary.max_discrepancy) == ("cat", 0.0, 0.5)
    assert summary.variance == pytest.approx(values.var())
    assert summary.nsd == pytest.approx(values.std() / values.mean())
    assert summary.weight_norm_correlation == pytest.approx(3**0.5 / 2)


def test_a_stronger_attacks_gain_is_shared_out_by_class():
    y = np.repeat([0, 1, 2], 10)
    weak = ClassDiagnosis(
        y, y, np.where(np.arange(30) % 10 < np.repeat([5, 2, 0], 10), (y + 1) % 3, y), np.ones(30, bool)
    )
    strong = ClassDiagnosis(
        y, y, np.where(np.arange(30) % 10 < np.repeat([8, 3, 0], 10), (y + 1) % 3, y), np.ones(30, bool)
    )
    (pair,) = compare_attacks([("strong", strong), ("weak", weak)], 3)
    assert (pair.weaker, pair.stronger, pair.gain) == ("weak", "strong", 4)
    assert pair.gain_on_weak_classes == pytest.approx(3 / 4)  # class 0 alone lies below the median
    assert pair.spearman == pytest.approx(1)
