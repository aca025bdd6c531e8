"""The three answers that a report opens with: each next step follows from the numbers, and its command is one that lsa takes."""

import shlex
from dataclasses import replace

import pytest

from lsa_cli.report.answers import belief, next_step, robustness
from lsa_cli.report.html import render
from lsa_cli.report.schema import CheckMade, Estimate, Evidence, Finding, GateResult, Stage
from lsa_cli.settings import settings_from
from tests.report.example import example, rate


def trusted(count=80, verdict="trusted", findings=(), **changes):
    """A trusted report with `count` of 100 robust and two classes that are equally robust."""
    report = example(**changes)
    checks = [CheckMade(name="planted", n=100, saw={})] * 3
    report.evidence = Evidence(verdict=verdict, findings=list(findings), checks=checks)
    report.verdict.robust = rate(count, 100)
    for row in report.verdict.classes:
        row.robust = rate(count // 2, 50)
    return report


def gate(metric="robust", limit=0.9, low=0.7, high=0.85, **changes):
    return GateResult(
        metric=metric, limit=limit, direction="at least", measured=0.8, low=low, high=high, passed=False, message="",
        decided_by="bound", **changes,
    )  # fmt: skip


def finding(level="doubtful", advice="use more steps"):
    return Finding(code="weak-attack", level=level, message="pgd is weaker than fgsm", advice=advice)


@pytest.mark.parametrize(
    ("report", "sentence", "command"),
    [
        (trusted(status="interrupted"), "Finish the audit", "lsa audit models/example.pt"),
        (trusted(10, verdict="doubtful", findings=[finding()]), "First do what the evidence advises: use more steps", ""),
        (trusted(verdict="quick look"), "Audit it with the default attacks", "lsa audit models/example.pt"),
        (trusted(gates=[gate(high=0.95)]), "Use more samples, because 100 do not decide robust", "lsa audit models/example.pt -n 400"),
        (trusted(gates=[gate()]), "Harden it by adversarial training", "lsa harden models/example.pt"),
        (trusted(44), "is relu2, which --layers relu2 also regularizes", "lsa harden models/example.pt"),
        (trusted(46), "Attack it more strongly", "lsa audit models/example.pt --full"),
        (trusted(gates=[gate("clean")]), "Attack it more strongly", "lsa audit models/example.pt --full"),
    ],
)  # fmt: skip
def test_the_next_step_follows_from_the_numbers(report, sentence, command):
    step = next_step(report)
    assert sentence in step.sentence
    assert step.command == command
    assert str(step) == (f"{step.sentence}: {command}" if command else step.sentence)


def test_the_worst_finding_goes_first():
    several = [finding(), finding("invalid", "give the normalisation")]
    assert "give the normalisation" in next_step(trusted(verdict="invalid", findings=several)).sentence
    assert belief(trusted(verdict="invalid", findings=several)).startswith(
        "No, do not quote it: 3 checks with 2 findings"
    )


def test_a_class_is_fixed_only_where_chance_does_not_explain_it():
    report = trusted(80)
    worst = report.verdict.classes[0]
    worst.robust = rate(34, 50)  # P(X <= 34) = 0.031 for 50 draws at 0.8: times two classes, more than 5%
    assert "class" not in next_step(report).sentence
    worst.robust = rate(32, 50)  # 0.0063
    step = next_step(report)
    assert step.command == "lsa harden models/example.pt --method class-fair"
    assert "Fix the class cat, of which 64.0% is robust (of all samples 80.0%" in step.sentence


def test_after_a_cascade_nothing_is_left():
    stage = Stage(attack="apgd-t", spec="apgd-t", settings={}, tried=80, broke=0, robust=rate(80, 100), seconds=1.0)
    assert next_step(trusted(cascade=[stage])).command == ""
    estimated = trusted(cascade=[stage])
    estimated.verdict.estimate = Estimate(value=0.8, low=0.6, high=0.9, survivors=80, checked=10, broken=0)
    assert next_step(estimated).command == "lsa audit models/example.pt --full"
    found = stage.model_copy(update={"by_evidence": True})  # which is no cascade
    assert next_step(trusted(cascade=[found])).command == "lsa audit models/example.pt --full"


def test_the_command_is_one_that_lsa_takes():
    asked = {
        "arch": "a folder/net.py:build", "arch_args": {"width": 16}, "normalize": "0.5/0.25", "input_range": (0.0, 255.0),
        "data": "npz:it's.npz?split=test", "norm": "l2", "eps": 0.5, "limit": 100, "trust_code": True,
    }  # fmt: skip
    settings = settings_from(asked)
    report = trusted(verdict="quick look")
    report.protocol.settings = settings.given()
    report.protocol.settings_from = dict.fromkeys(asked, "option")
    report.protocol.settings_from["norm"] = "the checkpoint"
    words = shlex.split(next_step(report).command)
    assert words[:3] == ["lsa", "audit", "models/example.pt"]
    given = dict(zip(words[3::2], words[4::2], strict=True))
    key, value = given.pop("--arch-args").split("=")
    again = settings_from(
        {name.removeprefix("--").replace("-", "_"): text for name, text in given.items()}
        | {"arch_args": {key: int(value)}}
    )
    assert again == replace(settings, limit=None, trust_code=None, norm=None)


def test_the_page_opens_with_the_answers():
    report = trusted(44)
    report.subject.checkpoint = "a b.pt"
    page = render(report)
    assert (
        f'<dt>What next?</dt><dd class="foreign">{next_step(report).sentence}.<code>lsa harden &#39;a b.pt&#39;</code>'
        in page
    )
    assert "none of 3 checks gives a reason to doubt it" in page
    assert robustness(report).startswith("Of 90 images")
    assert (
        page.index("How robust is it?")
        < page.index("Can I believe it?")
        < page.index("What next?")
        < page.index('id="attacks"')
    )
