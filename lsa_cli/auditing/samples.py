"""The rows of a report by sample: which attack broke it first, in which forward pass, by what margin and distance."""

from collections.abc import Mapping, Sequence

import numpy as np

from lsa_cli.auditing.named_attacks import NamedAttack
from lsa_cli.auditing.results import BlockResult
from lsa_cli.report.schema import Samples


def sample_rows(
    total: BlockResult, budget: Sequence[NamedAttack], on_all: Mapping[str, np.ndarray]
) -> Samples:  # fmt: skip
    """budget: the attacks in the order they ran. on_all: of attacks and noises on every sample, which stay robust (N,) bool."""
    count = len(total)
    broken_by, look = np.full(count, -1), np.zeros(count, dtype=np.int64)
    margin, distance = np.full(count, np.nan), np.full(count, np.nan)
    for number, named in enumerate(budget):
        rows, broken = total.attacks[named.label], total.diagnosis(named.label).broken
        left = rows.ran & (broken_by < 0)
        first, missed = left & broken, left & ~broken
        reached = np.where(rows.within, rows.margin, np.nan)  # an input beyond the budget counts for nothing
        broken_by[first], look[first] = number, rows.found_at[first]
        margin[first], distance[first] = reached[first], rows.distance[first]
        margin[missed] = np.fmax(margin[missed], reached[missed])
    return Samples(
        index=total.index.tolist(),
        label=total.label.tolist(),
        clean=total.clean.tolist(),
        broken_by=[budget[position].label if position >= 0 else None for position in broken_by.tolist()],
        look=[number if number > 0 else None for number in look.tolist()],
        margin=_numbers(-margin),  # within an audit a larger one is worse; in reports it is that of the glossary
        distance=_numbers(distance),
        proven=None if total.proof is None else total.proven.tolist(),
        held={label: "".join(np.where(robust, "1", "0")) for label, robust in on_all.items()},
    )


def _numbers(values: np.ndarray) -> list[float | None]:
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values.tolist()]
