"""All statistics of audits and reports. Shares are in [0, 1]; an interval is (low, high)."""

from lsa_cli.stats.sequences import (
    confidence_sequence,
    difference_sequence,
    log_evidence,
    log_wealth,
    samples_to_decide,
)
from lsa_cli.stats.shares import (
    binomial_tail,
    correlation_bound,
    detectable_pairs,
    detectable_shares,
    mcnemar,
    newcombe,
    not_inferior,
    ranks,
    spearman,
    widened,
    wilson,
)
from lsa_cli.stats.two_phase import Stratum, two_phase

__all__ = [
    "Stratum", "binomial_tail", "confidence_sequence", "correlation_bound", "detectable_pairs", "detectable_shares",
    "difference_sequence", "log_evidence", "log_wealth", "mcnemar", "newcombe", "not_inferior", "ranks", "samples_to_decide", "spearman",
    "two_phase", "widened", "wilson",
]  # fmt: skip
