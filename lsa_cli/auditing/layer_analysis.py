"""From an observation to the table of layers: means, intervals, gains, and the most vulnerable layers (arXiv 2202.02626)."""

from collections.abc import Sequence

import numpy as np

from lsa_cli.auditing.layer_scan import LayerScan, MvlRule
from lsa_cli.auditing.observation import Observation
from lsa_cli.layers import Layer
from lsa_cli.report.row import finite
from lsa_cli.report.schema import LayerAnalysis, LayerRow


def analyse_layers(
    layers: Sequence[Layer],
    seen: Observation,
    rule: MvlRule,
    seed: int,
    *,
    whole_batch: bool = False,
    of_classes: tuple[np.ndarray, int] | None = None,
) -> LayerAnalysis:
    """The layers (L) under one attack. seed: of the bootstrap.

    whole_batch: the rows of `seen` are batches. of_classes: the labels (N,) of its samples by place, and the number of
    classes, for the lists by class.
    """
    names = [layer.name for layer in layers]
    scan, floor = _scan(names, seen, whole_batch)
    # The change between two clean passes is no vulnerability: layers are ranked by what exceeds it.
    ranking_floor = np.nan_to_num(floor)
    ranked = scan.less(ranking_floor)
    found = ranked.most_vulnerable(rule)
    low, high, stability = scan.bootstrap(rule, seed)
    if ranking_floor.any():
        stability = ranked.bootstrap(rule, seed)[2]
    rows = _rows(layers, scan, floor, (low, high), stability, found.positions)
    by_class, mvl_by_class = None, None
    if of_classes is not None and not whole_batch:
        labels, classes = of_classes
        by_class, mvl_by_class = _by_class(
            [scan.select(labels == number) for number in range(classes)], ranking_floor, rule
        )
    input_error = scan.input_error[~np.isnan(scan.input_error)]
    return LayerAnalysis(
        rows=rows,
        mvl=[names[position] for position in found.positions],
        mvl_rule=(rule_in_words(rule, found.passed) if found.positions else "no layer has a mean above zero")
        + ("; of means above the noise floor" if ranking_floor.any() else ""),
        mu=finite(found.mu),
        sigma=finite(found.sigma),
        observations=len(scan.values),
        input_error=finite(input_error.mean()) if len(input_error) else None,
        by_class=by_class,
        mvl_by_class=mvl_by_class,
    )


def most_vulnerable(names: Sequence[str], seen: Observation, rule: MvlRule, whole_batch: bool = False) -> list[str]:
    """The names of the most vulnerable of the layers `names` (L), worst first. seen, whole_batch: as in `analyse_layers`."""
    scan, floor = _scan(names, seen, whole_batch)
    return [names[position] for position in scan.less(np.nan_to_num(floor)).most_vulnerable(rule).positions]


def _scan(names: Sequence[str], seen: Observation, whole_batch: bool) -> tuple[LayerScan, np.ndarray]:
    """The scan, and the noise floor (L,) of each layer."""
    order = np.arange(len(seen.layers)) if whole_batch else seen.index
    scan = LayerScan.from_rows(names, seen.layers, seen.yardstick, seen.input_error, order)
    return scan, LayerScan.from_rows(names, seen.noise_floor, seen.noise_floor, seen.input_error, order).means()


def _rows(
    layers: Sequence[Layer], scan: LayerScan, floor: np.ndarray, bounds: tuple[np.ndarray, np.ndarray], stability: np.ndarray,
    mvl: Sequence[int],
) -> list[LayerRow]:  # fmt: skip
    """A row for each layer. floor, stability (L,); bounds: the ends (L,) of the intervals; mvl: places of layers."""
    means, deviations, undefined = scan.means(), scan.deviations(), scan.undefined()
    amplification, gains = scan.amplification(), scan.gains()
    return [
        LayerRow(
            name=layer.name,
            kind=layer.kind,
            shape=list(layer.shape),
            mean=finite(means[i]),
            sd=finite(deviations[i]),
            low=finite(bounds[0][i]),
            high=finite(bounds[1][i]),
            gain=finite(gains[i]),
            amplification=finite(amplification[i]),
            stability=float(stability[i]),
            noise_floor=finite(floor[i]),
            in_mvl=i in mvl,
            undefined=int(undefined[i]),
        )
        for i, layer in enumerate(layers)
    ]


def _by_class(
    parts: Sequence[LayerScan], floor: np.ndarray, rule: MvlRule
) -> tuple[list[list[float | None]], list[list[str]]]:
    """The means (L, K), and the most vulnerable layers of each class. parts: the scan of the samples of each class."""
    table = np.stack([part.means() for part in parts], axis=1)
    mvl = [
        [part.names[place] for place in part.less(floor).most_vulnerable(rule).positions] if len(part.values) else []
        for part in parts
    ]
    return [[finite(value) for value in row] for row in table], mvl


def rule_in_words(rule: MvlRule, passed: bool) -> str:
    if rule.top_k is not None:
        return f"the {rule.top_k} largest means"
    over = "layers" if rule.sigma == "layers" else "samples x layers"
    words = f"mean - mu > {rule.eta:g} sigma (sigma over {over})"
    return words if passed else f"no layer passes {words}; the largest mean is named instead"
