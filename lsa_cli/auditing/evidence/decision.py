"""The result of a check, the one statistical rule of all checks, and the verdict over their findings."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from lsa_cli.attacks import Attack
from lsa_cli.report.schema import CheckMade, Evidence, EvidenceVerdict, Finding
from lsa_cli.stats import binomial_tail

ALPHA = 0.001  # error of one check: fifteen checks together doubt an honest network in fewer than 1.5% of audits
# The share of the samples that survive the gradient attacks which another attack may break by chance, through its random
# start: one more PGD breaks 1.6% for mnist_cnn.pt at 0.1, a smoothed PGD 1.5% for mnist_cnn_at.pt at 0.3. And the share
# of all samples: less than a point does not change the number that is quoted.
ALLOWED_BETTER, ALLOWED_POINTS = 0.02, 0.01
# What is said by these findings, and nothing else, is that the robust accuracy may be too high. The others say that it is the
# one of another network, of other data or of other inputs.
_TOO_HIGH = frozenset((
    "bare-logits-win", "dummy-outputs-win", "feature-attack-wins", "fresh-head-wins", "full-range-survived", "grid-attack-wins",
    "hidden-network", "inactive-part-wins", "inner-network-wins", "label-logit-wins", "loss-does-not-rise", "misaligned-gradient",
    "misses-planted", "noise-as-strong", "one-step-wins", "part-of-image-wins", "random-search-wins", "rugged-loss", "silent-success",
    "smoothed-surrogate-wins", "straight-through-wins", "stronger-attack-wins", "vanishing-gradient", "wrong-gradient",
))  # fmt: skip
FEW_SAMPLES = 10  # with fewer, an audit is a quick look: a check with 2% allowed needs 3 of 9 (our choice)


@dataclass(frozen=True)
class Checked:
    """The result of a check on n samples (or layers, or attacks): the numbers that it saw, and its finding, if any.

    said: what it saw as a sentence, for a check whose result reports state also without a finding.
    attacks: by label, those that count in the result because they break what the attacks of the audit missed.
    """

    name: str
    n: int
    saw: Mapping[str, float]
    finding: Finding | None = None
    said: str = ""
    attacks: Mapping[str, Attack] = field(default_factory=dict)


def doubt(code: str, message: str, advice: str, level: Literal["doubtful", "invalid"] = "doubtful") -> Finding:
    return Finding(code=code, level=level, message=message, advice=advice)


def lowered(finding: Finding, before: int, after: int, samples: int, in_time: bool) -> Finding:
    """The finding of attacks that then ran on all `before` of the samples that were robust, of which `after` still are.

    in_time: whether the time budget was enough for all.
    """
    ran = "on all samples that were still robust" if in_time else "until the time budget ended"
    result = f"lowered the robust accuracy from {before / samples:.1%} to {after / samples:.1%}"
    message = f"{finding.message}; run {ran}, the attack {result if after < before else 'broke no other one'}"
    return doubt(finding.code, message, finding.advice, finding.level)


def exceeds(count: int, n: int, allowed: float, alpha: float = ALPHA) -> bool:
    """Whether count of n is more than a share `allowed` explains: one-sided exact binomial test at alpha.

    Our choice for all checks. `allowed` is the smallest effect that matters, and covers what happens to honest networks
    (ties, rounding, chance in a random start). A network whose true share is at most `allowed` is doubted with
    probability ALPHA at most. With allowed = 2% it takes 4 of 12, 6 of 48, 10 of 128, 36 of 1000.
    """
    return n > 0 and binomial_tail(count, n, allowed) < alpha


def beats(broken: int, survivors: int, correct: int, allowed: float = ALLOWED_BETTER) -> bool:
    """Whether an attack breaks so many survivors of the gradient attacks that those attacks must have failed.

    Two tests by `exceeds`: more than `allowed` of the survivors, and more than 1% of the `correct` samples, which are
    classified correctly without an attack. The first test alone would doubt a network that breaks nearly everywhere,
    for the few samples that one run missed by chance.
    """
    return exceeds(broken, survivors, allowed) and exceeds(broken, correct, ALLOWED_POINTS)


def verdict(findings: Sequence[Finding], quick: bool = False) -> EvidenceVerdict:
    """The worst level of the findings. "trusted" means that there is no finding, not that the number is proven.

    quick: the attacks were short or the samples few, so that the number is not trusted even without a finding.
    """
    levels = {finding.level for finding in findings}
    if levels:
        return "invalid" if "invalid" in levels else "doubtful"
    return "quick look" if quick else "trusted"


def without_matter(checked: Checked, robust: float) -> Checked:
    """The check; without its finding where that only says that the robust accuracy is too high, and it is 1% or less.

    It can then be too high by a point at most, which does not change the number that is quoted (our choice).
    """
    if checked.finding is None or checked.finding.code not in _TOO_HIGH or robust > ALLOWED_POINTS:
        return checked
    said = f"{checked.finding.code} is no reason for doubt here: a robust accuracy of {robust:.1%} is too high by a point at most"
    return replace(checked, finding=None, said=said)


def evidence_of(checked: Sequence[Checked], quick: bool = False, robust: float = 1.0) -> Evidence:
    """The part of the report: a row for each check, and all findings that matter, invalid ones first.

    quick: see `verdict`. robust: the robust accuracy of the audit; 1 where none is known.
    """
    checked = [without_matter(check, robust) for check in checked]
    findings = [check.finding for check in checked if check.finding is not None]
    findings.sort(key=lambda finding: finding.level != "invalid")
    rows = [
        CheckMade(
            name=check.name,
            n=check.n,
            saw={key: float(value) if math.isfinite(value) else None for key, value in check.saw.items()},
            findings=[] if check.finding is None else [check.finding.code],
            statement=check.said,
        )
        for check in checked
    ]
    return Evidence(verdict=verdict(findings, quick), findings=findings, checks=rows)
