"""The history of a folder of reports as a static site: a leaderboard, trends, any two models side by side, a page a model.

Nothing is fetched and nothing needs a server: the pages open from disk.
"""

import base64
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from lsa_cli.errors import UsageError
from lsa_cli.report import by_sample, html
from lsa_cli.report.figures import SHOWN_CLASSES, LineChart
from lsa_cli.report.fleet import Fleet, FleetRow, make_fleet
from lsa_cli.report.fleet_view import one_line, tables
from lsa_cli.report.page import page
from lsa_cli.report.ranking import strongest
from lsa_cli.report.schema import AuditReport
from lsa_cli.report.trends import SHOWN_LAYERS, Panels, by_class, by_layer, by_mvl, draw_panel, layers_of, trend
from lsa_cli.report.view import Link, Table

Order = Literal["name", "date", "epoch", "commit", "key"]
Places = Mapping[str, tuple[Any, str]]  # of each model: what it is sorted by, and how that is written
_MOST_FLAGS = 500_000  # bytes of single samples in the page, which stays below 1 MB with 200 models


@dataclass(frozen=True)
class _Group:
    """The trends of the models with one protocol. labels: of the models, in order."""

    labels: Sequence[str]
    chart: LineChart
    panels: Sequence[Panels]


def site(
    tool: str, reports: Mapping[str, AuditReport], order: Order, given: Places | None = None
) -> Iterator[tuple[str, str]]:
    """Path and text of each page. reports: complete ones, by model. order: of the models in the trends; given: the places for the
    orders commit and key.

    The first page is index.html. Strings of the reports are treated as hostile. Raises UsageError for the order epoch where a
    name has no number.
    """
    names = _short(list(reports))
    found = {names[name]: report for name, report in reports.items()}
    paths = _paths(list(found))
    fleet = make_fleet(tool, found, paths)
    own = {names[name]: place for name, place in (given or {}).items()}
    places = {row.model: _place(row, order, own) for row in fleet.rows}
    yield "index.html", _index(fleet, places, found, paths)
    for name, report in found.items():
        yield paths[name], html.render(report, home="../index.html")


def _index(
    fleet: Fleet, places: Mapping[str, tuple[Any, str]], reports: Mapping[str, AuditReport], paths: Mapping[str, str]
) -> str:
    rows = sorted(fleet.rows, key=lambda row: (places[row.model][0], _natural(row.model)))
    numbers = dict.fromkeys(row.group for row in fleet.rows)
    groups = [_group([row for row in rows if row.group == number], places, reports) for number in numbers]
    trends = [group for group in groups if group is not None]
    return page(
        "history.html",
        scripts=("report.js", "history.js"),
        sections={
            "models": "Models", "trends": trends and "Trends", "compare": len(rows) > 1 and "Any two", "reading": "How to read this",
        },
        fleet=fleet,
        headline=one_line(fleet),
        tables=[_linked(table, paths) for table in tables(fleet)],
        trends=trends,
        draw_panel=draw_panel,
        first=min(report.created for report in reports.values())[:10],
        last=max(report.created for report in reports.values())[:10],
        data=json.dumps(_data(fleet, reports, paths), ensure_ascii=False, separators=(",", ":")),
    )  # fmt: skip


def _group(
    rows: Sequence[FleetRow], places: Mapping[str, tuple[Any, str]], reports: Mapping[str, AuditReport]
) -> _Group | None:
    labels = [places[row.model][1] for row in rows]
    chart = trend(rows, labels)
    chosen = [reports[row.model] for row in rows]
    panels = (by_class(chosen), by_mvl(chosen), by_layer(chosen))
    return None if chart is None else _Group(labels, chart, [one for one in panels if one is not None])


def _place(row: FleetRow, order: Order, given: Places) -> tuple[Any, str]:
    """What a model is sorted by, and its label in the trends."""
    if order == "date":
        return row.created, f"{(row.created or '')[:10]} {row.model}"
    if order in ("commit", "key"):
        at, name = given[row.model]
        return at, f"{name} {row.model}"
    if order == "epoch":
        return epoch_of(row.model), row.model
    return _natural(row.model), row.model


def epoch_of(name: str) -> int:
    """The number behind "epoch" in a name, otherwise the last number. Raises UsageError where there is none."""
    found = re.findall(r"epoch\D?(\d+)", name, re.IGNORECASE) or re.findall(r"\d+", name)
    if not found:
        raise UsageError(f"--order epoch: the name {name} has no number; use --order name, date or commit")
    return int(found[-1])


# ---- names ---------------------------------------------------------------------------------------------


def _short(names: list[str]) -> dict[str, str]:
    """The names without the folder and the ending that all share."""
    folder = os.path.commonpath([os.path.dirname(name) for name in names])
    endings = {os.path.splitext(name)[1] for name in names}
    ending = endings.pop() if len(endings) == 1 else ""
    return {name: (name[len(folder) :].lstrip("/") if folder else name).removesuffix(ending) for name in names}


def _paths(names: list[str]) -> dict[str, str]:
    """A file of the site for each model, in letters that every server and disk takes."""
    return {
        name: f"models/{number:04d}-{re.sub('[^A-Za-z0-9._-]+', '-', name)[-80:]}.html"
        for number, name in enumerate(names, 1)
    }


def _natural(name: str) -> list[tuple[int, int, str]]:
    """A key by which epoch-2 comes before epoch-10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


def _linked(table: Table, paths: Mapping[str, str]) -> Table:
    """With a link to the page of each model."""
    rows = tuple(
        tuple(Link(cell, paths[cell]) if isinstance(cell, str) and cell in paths else cell for cell in row)
        for row in table.rows
    )
    return replace(table, rows=rows)


# ---- any two -------------------------------------------------------------------------------------------


def _data(fleet: Fleet, reports: Mapping[str, AuditReport], paths: Mapping[str, str]) -> list[dict[str, Any]]:
    """What the script compares; the single samples as bits, where the page has room for them."""
    sizes = sum(len(s.label) // 6 for report in reports.values() if (s := report.samples) is not None)
    return [_of_model(row, reports[row.model], paths[row.model], sizes <= _MOST_FLAGS) for row in fleet.rows]


def _of_model(row: FleetRow, report: AuditReport, path: str, with_samples: bool) -> dict[str, Any]:
    shares = {
        name: [None if end is None else round(end, 4) for end in (rate.value, rate.low, rate.high)]
        for name in ("robust", "clean", "proven", "worst")
        if (rate := getattr(row, name)) is not None
    }
    classes = report.verdict.classes if len(report.verdict.classes) <= SHOWN_CLASSES else []
    robust = {one.name: None if one.robust.value is None else round(one.robust.value, 4) for one in classes}
    top = strongest(report, scanned=True)
    layers = list(layers_of(report, top.name).items())[:SHOWN_LAYERS] if top is not None else []
    found = {
        "name": row.model, "page": path, "group": row.group, "shares": shares, "classes": robust,
        "attack": top.name if top is not None else "",
        "layers": {name: None if mean is None else float(f"{mean:.3g}") for name, (mean, _) in layers},
        "mvl": [name for name, (_, in_mvl) in layers if in_mvl],
    }  # fmt: skip
    if report.samples is not None and with_samples:
        bits = np.packbits(np.array(by_sample.robust(report.samples)))
        found |= {"n": len(report.samples.label), "bits": base64.b64encode(bits.tobytes()).decode()}
    return found
