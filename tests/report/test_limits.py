"""The grammar of what a limit can name."""

import re

import pytest

from lsa_cli.errors import UsageError
from lsa_cli.report.limits import METRICS, find_metric, metric_pattern, parse_metric, words_of
from lsa_cli.report.measurement import measure_metric
from tests.report.example import example

NAMES = {  # family, target, what the target names, accuracy, share
    "clean": ("clean", "", None, True, True),
    "robust": ("robust", "", None, True, True),
    "robust.pgd": ("robust", "pgd", "attack", True, True),
    "robust.pgd:steps=4,eps=0.1": ("robust", "pgd:steps=4,eps=0.1", "attack", True, True),
    "class.min": ("class", "min", None, True, True),
    "class.discrepancy": ("class", "discrepancy", None, False, True),
    "class.a.b": ("class", "a.b", "class", True, True),
    "drop": ("drop", "", None, False, True),
    "drop.clean": ("drop", "clean", None, False, True),
    "layer.max-error": ("layer", "max-error", None, False, False),
    "layer.block.0.relu": ("layer", "block.0.relu", "layer", False, False),
    "mvl": ("mvl", "", None, False, False),
    "mvl.relu1": ("mvl", "relu1", "layer", False, False),
    "evidence.doubtful": ("evidence", "doubtful", None, False, False),
    "evidence.invalid": ("evidence", "invalid", None, False, False),
    "seconds": ("seconds", "", None, False, False),
}
NONE = (
    "",
    "robst",
    "robust.",
    "clean.pgd",
    "class",
    "class.",
    "layer",
    "mvl.",
    "drop.pgd",
    "drop.",
    "evidence",
    "evidence.x",
    "seconds.1",
)


@pytest.mark.parametrize("text", NAMES)
def test_names_are_parsed(text):
    found = parse_metric(text)
    assert (found.family, found.target, found.names, found.is_accuracy, found.is_share) == NAMES[text]
    assert str(found) == text
    assert re.search(metric_pattern(), text)


@pytest.mark.parametrize("text", NONE)
def test_other_texts_name_no_metric(text):
    assert find_metric(text) is None
    assert not re.search(metric_pattern(), text)
    with pytest.raises(UsageError, match="unknown gate metric"):
        parse_metric(text)


def test_every_kind_of_metric_can_be_measured():
    report = example()
    names = {"ATTACK": "pgd", "NAME": "cat", "LAYER": "relu2"}
    for kind in METRICS:
        target = (
            {"layer": "relu1"}.get(kind.family, names.get(kind.target, kind.target)) if kind.is_open else kind.target
        )
        text = f"{kind.family}.{target}" if target else kind.family
        found = measure_metric(report, parse_metric(text))
        without = ("no checks of the evidence were made", "only --gate-only with --baseline measures it")
        assert found.value is not None or found.why in without, text


def test_words_are_the_targets_that_are_no_names():
    assert words_of("class") == ["min", "discrepancy"]
    assert words_of("robust") == words_of("mvl") == []
