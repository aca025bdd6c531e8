"""decide_in_order(): how few of the samples of two reports, taken in random order, tell which report is better.

This is about these samples alone. Whether a difference is beyond noise is what `compare` tests.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from lsa_cli.errors import UsageError
from lsa_cli.report import by_sample
from lsa_cli.report.row import Row
from lsa_cli.report.schema import AuditReport
from lsa_cli.stats import samples_to_decide
from lsa_cli.wording import plural

ERROR = 0.05  # that any row is decided wrongly: the false alarm rate of a table of `compare` (our choice)
_SEED = 0


class Decision(Row):
    """One accuracy: after how many samples in random order the better report was decided."""

    name: str
    used: int = Field(description="samples taken until it was decided; n where only all of them tell")
    n: int = Field(description="samples of both reports")
    better: Literal["old", "new", "neither"] = Field(description="on these samples; neither: both accuracies are equal")


def decide_in_order(old: AuditReport, new: AuditReport) -> list[Decision]:
    """Clean accuracy, robust accuracy and that under each attack, for two reports that `compare` accepts.

    The rows share the error (Bonferroni); see `stats.samples_to_decide`. Raises UsageError for a report without results of
    single samples.
    """
    for which, report in (("first", old), ("second", new)):
        if report.samples is None:
            raise UsageError(
                f"--sequential compares sample by sample, and the {which} report has no results of single samples, because "
                "no attack ran; leave it out"
            )
    rows = dict(_steps(old, new))
    decisions = []
    for name, steps in rows.items():
        order = np.random.default_rng(_SEED).permutation(len(steps))
        used, sign = samples_to_decide(steps[order], ERROR / len(rows))
        better: Literal["old", "new", "neither"] = "new" if sign > 0 else "old" if sign < 0 else "neither"
        decisions.append(Decision(name=name, used=used, n=len(steps), better=better))
    return decisions


def _steps(old: AuditReport, new: AuditReport) -> Iterator[tuple[str, np.ndarray]]:
    """By name: 1 for a sample (N,) that is won, -1 for one that is lost, 0 for others."""
    before, after = old.samples, new.samples
    assert before is not None
    assert after is not None
    yield "clean", steps(by_sample.clean(before), by_sample.clean(after))
    yield "robust", steps(by_sample.robust(before), by_sample.robust(after))
    for outcome in new.outcomes:
        one, other = by_sample.under(before, outcome.name), by_sample.under(after, outcome.name)
        if one is not None and other is not None:
            yield f"accuracy under {outcome.name}", steps(one, other)


def steps(old: Sequence[bool] | np.ndarray, new: Sequence[bool] | np.ndarray) -> np.ndarray:  # (N,) int
    return np.array(new, dtype=np.int64) - np.array(old, dtype=np.int64)


def in_words(decisions: Sequence[Decision]) -> list[str]:
    """A heading, and a sentence for each decision."""
    head = (
        "How many of these samples in random order decide which report is better on all of them (wrong for any row with a "
        f"probability of at most {100 * ERROR:g}%):"
    )
    return [head, *(_sentence(one) for one in decisions)]


def _sentence(one: Decision) -> str:
    result = "both are equal" if one.better == "neither" else f"the {one.better} one is better"
    number = f"only all {plural(one.n, 'sample')} tell" if one.used == one.n else f"{one.used:,} of {one.n:,} decide"
    return f"{one.name}: {number} that {result}"
