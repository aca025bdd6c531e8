"""Counts and numbers as people write them, in one place and in every output."""

import csv
import io
import re

import pytest

from lsa_cli.report import html, markdown
from lsa_cli.report.tables import write_csv
from lsa_cli.report.text import settings_text
from lsa_cli.wording import compact, eps_as_text, plural, setting_as_text
from tests.report.example import example


def test_counts():
    assert [plural(n, "thread") for n in (0, 1, 2, 1000)] == ["0 threads", "1 thread", "2 threads", "1,000 threads"]
    assert plural(1, "more class", "more classes") == "1 more class"
    assert plural(3, "more class", "more classes") == "3 more classes"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.05000000074505806, "0.05"), (0.0375, "0.0375"), (0.20000000298, "0.2"), (1 / 3, "0.333"), (1.0, "1"),
        (0.0, "0"), (1e-05, "1e-5"), (0.00025, "0.00025"), (1234.5, "1234"), (0.1234567, "0.123"), (-2.5, "-2.5"),
    ],
)  # fmt: skip
def test_numbers_have_three_significant_digits(value, text):
    assert compact(value) == text


@pytest.mark.parametrize("levels", [0.25, 0.5, 1, 2, 4, 8, 16, 80, 127])
def test_radii_and_steps_are_counted_in_levels_of_255(levels):
    """Also where a float32 has rounded them."""
    import numpy as np

    for value in (levels / 255, float(np.float32(levels / 255))):
        assert eps_as_text(value) == f"{levels:g}/255"
        assert setting_as_text("step_size", value) == f"{levels:g}/255"


@pytest.mark.parametrize("eps", [0.1, 0.3, 0.05, 0.5, 1.5, 2.0, 12.0, 0.0313])
def test_other_radii_stay_as_they_were_typed(eps):
    import numpy as np

    assert eps_as_text(eps) == eps_as_text(float(np.float32(eps))) == f"{eps:g}"


def test_settings_in_one_line():
    settings = {"norm": "linf", "eps": 4 / 255, "steps": 20, "step_size": 1 / 255, "momentum": 0.0, "random_start": True,
                "loss": "ce", "temperature": 0.20000000298, "alpha": 0.05000000074505806, "unused": None}  # fmt: skip
    assert settings_text(settings) == (
        "linf, eps 4/255, steps 20, step size 1/255, momentum 0, random start true, loss ce, temperature 0.2, alpha 0.05"
    )


def shown(report, tmp_path):
    """The report as people and programs get it, by kind."""
    from rich.console import Console

    from lsa_cli.report.terminal import print_report

    stream = io.StringIO()
    print_report(report, Console(file=stream, width=200, highlight=False))
    layers = next(path for path in write_csv(report, tmp_path) if path.name == "layers.csv")
    return {
        "terminal": stream.getvalue(), "markdown": markdown.render(report), "html": html.render(report),
        "csv": ",".join(next(csv.reader(layers.open()))), "json": report.to_json(),
    }  # fmt: skip


def test_amplification_has_one_name_in_every_output(tmp_path):
    for kind, text in shown(example(), tmp_path).items():
        assert "amplification" in text.lower(), kind
        assert not re.search(r"x noise|against noise", text, flags=re.I), kind


def test_counts_of_one_and_numbers_of_float32_in_every_output(tmp_path):
    report = example()
    outcome = report.outcomes[0]
    outcome = outcome.model_copy(
        update={"settings": {"norm": "linf", "eps": 4 / 255, "step_size": 0.05000000074505806}}
    )
    protocol = report.protocol.model_copy(
        update={"threads": 1, "settings": {"eps": 4 / 255}, "settings_from": {"eps": "option"}}
    )
    report = report.model_copy(update={"outcomes": [outcome, *report.outcomes[1:]], "protocol": protocol})
    for kind, text in shown(report, tmp_path).items():
        if kind in ("json", "csv"):
            continue
        assert "4/255" in text, kind
        assert not re.search(r"0\.0156862|0\.0500000", text), kind
        # Of a count of one: "1 threads", but not "11 threads", "0.1 points" or a table's cell.
        assert not re.search(
            r"(?<![\d.,/])1 (threads|layers|samples|classes|checks|findings|epochs|limits|attacks)\b", text
        ), kind
