"""The three answers that a report opens with: how robust the network is, whether to believe it, and what to do next.

Which next step is named first is our choice; no paper orders them.
"""

import shlex
from typing import NamedTuple

from lsa_cli.commands import OF_AUDIT, OF_NETWORK, OF_SAMPLES, command
from lsa_cli.report.ranking import strongest, weakest_class
from lsa_cli.report.schema import AuditReport, GateResult
from lsa_cli.report.text import QUICK_LOOK, percent
from lsa_cli.stats import binomial_tail
from lsa_cli.wording import first_of, plural

_WEAK = 0.5  # our choice: below this share of the clean accuracy, training helps more than a closer look
_CHANCE = 0.05  # significance level: a weakest class that differs less from the others is not named


class Step(NamedTuple):
    """What to do next, as a sentence without its stop, and the command that does it; "" where there is none."""

    sentence: str
    command: str = ""

    def __str__(self) -> str:
        return f"{self.sentence}: {self.command}" if self.command else self.sentence


def robustness(report: AuditReport) -> str:
    """How robust the network is: how many inputs can be turned. A sentence without its stop."""
    meaning = report.verdict.meaning
    return meaning[:1].upper() + meaning[1:] if meaning else report.verdict.statement.removesuffix(".")


def belief(report: AuditReport) -> str:
    """Whether the robust accuracy can be believed, and why. A sentence without its stop."""
    evidence = report.evidence
    if report.status != "complete":
        return f"Not yet: the audit is {report.status}"
    if evidence is None:
        return "Not known: this audit made no checks of its own attacks"
    made, found = plural(len(evidence.checks), "check"), plural(len(evidence.findings), "finding")
    if evidence.verdict == "trusted":
        return f"Yes, as an upper bound: none of {made} gives a reason to doubt it"
    if evidence.verdict == "quick look":
        return f"Only as a first look: {QUICK_LOOK}"
    word = "Not without doubt" if evidence.verdict == "doubtful" else "No, do not quote it"
    messages = [finding.message for finding in evidence.findings]
    return f"{word}: {made} with {found}; {first_of(messages, 1)}"


def next_step(report: AuditReport) -> Step:
    """The first of these that applies: finish the audit, do what a finding says, audit with the usual attacks, use more samples,
    harden the network, fix its weakest class, attack it more strongly; otherwise nothing is left to do.
    """
    verdict, evidence = report.verdict, report.evidence
    if report.status != "complete":
        return Step(
            "Finish the audit, because nothing follows from a part of it", command_for(report, "audit", of=OF_AUDIT)
        )
    if evidence is not None and evidence.findings:
        worst = min(evidence.findings, key=lambda finding: finding.level != "invalid")
        return Step(f"First do what the evidence advises: {worst.advice}")
    if evidence is not None and evidence.verdict == "quick look":
        return Step(
            "Audit it with the default attacks, which are stronger",
            command_for(report, "audit", of=(*OF_NETWORK, "noise_off")),
        )
    if verdict.robust is None or verdict.robust.value is None:
        return Step(
            "Audit it with attacks, which give the robust accuracy", command_for(report, "audit", of=OF_SAMPLES)
        )
    return _of_trusted(report, verdict.robust.value)


def _of_trusted(report: AuditReport, robust: float) -> Step:
    data, clean = report.data, report.verdict.clean.value or 0.0
    failed = [gate for gate in report.failed_gates if gate.measured is not None]
    undecided = [gate.metric for gate in failed if gate.state == "undecided"]
    if undecided and data.n < data.available:
        more = min(data.available, 4 * data.n)  # four times as many samples halve an interval
        sentence = f"Use more samples, because {data.n:,} do not decide {first_of(undecided, 2)}"
        return Step(sentence, command_for(report, "audit", "-n", str(more), of=OF_AUDIT))
    if robust < _WEAK * clean or any(map(_asks_for_robustness, failed)):
        return Step(f"Harden it by adversarial training{_layer(report)}", command_for(report, "harden"))
    weak = _weak_class(report, robust)
    if weak:
        return Step(weak, command_for(report, "harden", "--method", "class-fair"))
    if report.verdict.estimate is not None:
        return Step(
            "Attack all samples by the cascade, because it ran on a part of them",
            command_for(report, "audit", "--full", of=OF_SAMPLES),
        )
    if all(row.by_evidence for row in report.cascade):
        return Step(
            "Attack it more strongly, with a cascade as strong as AutoAttack",
            command_for(report, "audit", "--full", of=OF_SAMPLES),
        )
    return Step("Nothing is left to do in this threat model; quote the number with its interval")


def _asks_for_robustness(gate: GateResult) -> bool:
    return gate.state == "breached" and gate.metric.startswith("robust")


def _layer(report: AuditReport) -> str:
    """The layer that moves most, and the option that regularizes it; "" where none is most vulnerable."""
    top = strongest(report, scanned=True)
    if top is None or top.layers is None or not top.layers.mvl:
        return ""
    name = top.layers.mvl[0]
    option = f"--layers {shlex.quote(name)}"
    return f"; the layer that moves most under {top.name} is {name}, which {option} also regularizes"


def _weak_class(report: AuditReport, robust: float) -> str:
    """The class to fix: chance makes the weakest of K classes so weak in at most 5% (a binomial test, times K). "" without one."""
    row = weakest_class(report)
    if row is None or row.robust.value is None or row.robust.value >= robust:
        return ""
    broken = row.robust.n - row.robust.count
    if binomial_tail(broken, row.robust.n, 1 - robust) * len(report.verdict.classes) > _CHANCE:
        return ""
    return (
        f"Fix the class {row.name}, of which {percent(row.robust.value)} is robust (of all samples {percent(robust)}; chance does "
        "not explain the difference)"
    )


def command_for(report: AuditReport, name: str, *more: str, of: tuple[str, ...] = OF_NETWORK) -> str:
    """`lsa NAME` for this checkpoint, with the options of these names that its audit was given, and with more of them."""
    protocol = report.protocol
    given = {key: value for key, value in protocol.settings.items() if protocol.settings_from.get(key) == "option"}
    return command(name, report.subject.checkpoint, given, *more, of=of)
