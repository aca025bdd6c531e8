"""The one statistical rule that every check of evidence follows, and the verdict over all of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lsa_cli.report.schema import CheckMade, Evidence, EvidenceVerdict, Finding
from lsa_cli.stats import binomial_tail

ALPHA = 0.001  # for each check: some fifteen of them together doubt an honest network in less than 1.5% of audits
# What another attack may break of the samples that the gradient attacks left, by luck of its start: one more PGD
# breaks 1.6% of them for mnist_cnn.pt at 0.1, a smoothed one 1.5% for mnist_cnn_at.pt at 0.3. And of all samples,
# as less than a point does not move the number that is quoted.
ALLOWED_BETTER, ALLOWED_POINTS = 0.02, 0.01


@dataclass(frozen=True)
class Checked:
    """A check that was made: on n samples (or layers, or attacks), what it saw in numbers, and what it found."""

    name: str
    n: int
    saw: Mapping[str, float]
    findings: tuple[Finding, ...] = ()


def exceeds(count: int, n: int, allowed: float, alpha: float = ALPHA) -> bool:
    """Whether count of n is more than a share `allowed` explains: one-sided exact binomial test at alpha.

    Our choice for all checks. `allowed` is the least effect that matters and also what happens to honest networks
    (ties, rounding, the luck of a random start); a network whose true share is that or less is doubted with
    probability ALPHA at most. With allowed = 2% it takes 4 of 12, 6 of 48, 10 of 128, 36 of 1000.
    """
    return n > 0 and binomial_tail(count, n, allowed) < alpha


def beats(broken: int, survivors: int, right: int, allowed: float = ALLOWED_BETTER) -> bool:
    """Whether breaking so many of the samples that gradient attacks left says that those were fooled.

    Two tests, both as in `exceeds`: more than `allowed` of the survivors, and more than 1% of all that were right clean.
    The first alone would doubt a network that breaks nearly everywhere, for the handful that one run missed by luck.
    """
    return exceeds(broken, survivors, allowed) and exceeds(broken, right, ALLOWED_POINTS)


def doubt(code: str, message: str, advice: str) -> Finding:
    return Finding(code=code, level="doubtful", message=message, advice=advice)


def verdict(findings: Sequence[Finding], quick: bool = False) -> EvidenceVerdict:
    """The worst level among the findings; "trusted" says that no check objected, not that the number is proven.

    quick: the attacks were those of a quick look, which is not trusted even where no check objects.
    """
    levels = {finding.level for finding in findings}
    if levels:
        return "invalid" if "invalid" in levels else "doubtful"
    return "quick look" if quick else "trusted"


def evidence_of(checked: Sequence[Checked], quick: bool = False) -> Evidence:
    """The report's rows: one a check, and all findings, those that make the number meaningless first. quick: see `verdict`."""
    findings = [finding for check in checked for finding in check.findings]
    findings.sort(key=lambda finding: finding.level != "invalid")
    rows = [
        CheckMade(
            name=check.name,
            n=check.n,
            saw={key: float(value) if math.isfinite(value) else None for key, value in check.saw.items()},
            findings=[finding.code for finding in check.findings],
        )
        for check in checked
    ]
    return Evidence(verdict=verdict(findings, quick), findings=findings, checks=rows)
