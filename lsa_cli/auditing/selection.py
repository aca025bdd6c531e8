"""Which samples of the data an audit takes."""

import numpy as np

from lsa_cli.auditing.network import Network
from lsa_cli.auditing.presets import DEFAULT_LIMIT, QUICK_LIMIT
from lsa_cli.data import stratified_subset
from lsa_cli.errors import UsageError
from lsa_cli.report.limits import parse_metric
from lsa_cli.report.schema import AuditReport, Warning
from lsa_cli.report.storage import read_report
from lsa_cli.settings import AuditSettings


def choose_samples(
    network: Network, seed: int, baseline: AuditReport | None
) -> tuple[np.ndarray, list[Warning]]:  # fmt: skip
    """Places of the samples in the data, ascending, and warnings where classes have none of them.

    baseline: its samples are taken, unless --limit is given. Raises UsageError for more samples than there are.
    """
    from lsa_cli.auditing.evidence.preflight import empty_classes

    index = _of_baseline(baseline, len(network.data)) if network.settings.limit is None else None
    if index is None:
        index = _by_limit(network, seed)
    counts, in_data = (
        np.bincount(labels, minlength=network.classes) for labels in (network.labels[index], network.labels)
    )
    return index, empty_classes(counts, in_data, network.class_names)


def open_baseline(settings: AuditSettings) -> AuditReport | None:
    """The report of --baseline, where a limit on a drop is decided by it. Raises UsageError for a file that is no report."""
    drops = [name for name in settings.gate or {} if parse_metric(name).family == "drop"]
    return read_report(settings.baseline) if settings.gate_only and settings.baseline is not None and drops else None


def _of_baseline(baseline: AuditReport | None, available: int) -> np.ndarray | None:
    """None for a report without samples, or of other data: `checked_baseline` then says what is wrong with it."""
    index = baseline.samples.index if baseline is not None and baseline.samples is not None else []
    if not index or index != sorted({*index}) or not 0 <= index[0] <= index[-1] < available:
        return None
    return np.array(index)


def _by_limit(network: Network, seed: int) -> np.ndarray:
    available, limit = len(network.data), network.settings.limit
    default = QUICK_LIMIT if network.settings.preset == "quick" else DEFAULT_LIMIT
    if isinstance(limit, int) and limit > available:
        raise UsageError(
            f"--limit {limit} asks for more samples than the {available} in {network.data.spec}; use --limit all"
        )
    if limit == "all" or (limit is None and available <= default):
        return np.arange(available)
    return stratified_subset(network.labels, int(limit or default), seed)
