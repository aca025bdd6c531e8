"""The history of a folder of reports as a static site: a leaderboard, trends, any two models side by side, a page a model.

Nothing is fetched and nothing needs a server: the pages open from disk.
"""

import base64
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from lsa_cli.report import by_sample, html
from lsa_cli.report.figures import CLEAN, ROBUST, SHOWN_CLASSES, Line, LineChart, point
from lsa_cli.report.fleet import Fleet, FleetRow, make_fleet
from lsa_cli.report.fleet_view import one_line, tables
from lsa_cli.report.page import page
from lsa_cli.report.schema import AuditReport
from lsa_cli.report.view import Link, Table

Order = Literal["name", "date"]
_PROVEN, _WORST = 2, 3  # places in COLOURS
_MOST_FLAGS = 500_000  # bytes of single samples in the page, which stays below 1 MB with 200 models


def site(tool: str, reports: Mapping[str, AuditReport], order: Order) -> Iterator[tuple[str, str]]:
    """Path and text of each page. reports: complete ones, by model. order: of the models in the trends.

    The first page is index.html. Strings of the reports are treated as hostile.
    """
    names = _short(list(reports))
    found = {names[name]: report for name, report in reports.items()}
    paths = _paths(list(found))
    fleet = make_fleet(tool, found, paths)
    rows = sorted(fleet.rows, key=lambda row: _natural(row.model) if order == "name" else (row.created, row.model))
    yield "index.html", _index(fleet, rows, found, paths, order)
    for name, report in found.items():
        yield paths[name], html.render(report, home="../index.html")


def _index(
    fleet: Fleet, rows: Sequence[FleetRow], reports: Mapping[str, AuditReport], paths: Mapping[str, str], order: Order
) -> str:
    trends = [
        chart for group in dict.fromkeys(row.group for row in fleet.rows) if (chart := _trend(rows, group, order))
    ]
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
        first=min(report.created for report in reports.values())[:10],
        last=max(report.created for report in reports.values())[:10],
        data=json.dumps(_data(fleet, reports, paths), ensure_ascii=False, separators=(",", ":")),
    )  # fmt: skip


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


# ---- trends --------------------------------------------------------------------------------------------


def _trend(rows: Sequence[FleetRow], group: int | None, order: Order) -> LineChart | None:
    """The numbers of one group over the models in order; None for a single model."""
    chosen = [row for row in rows if row.group == group]
    if len(chosen) < 2:
        return None
    kinds = (
        ("clean", "clean", CLEAN),
        ("robust", "robust", ROBUST),
        ("proven", "proven", _PROVEN),
        ("worst", "worst class", _WORST),
    )
    every = [Line(title, [point(getattr(row, name)) for row in chosen], colour=colour) for name, title, colour in kinds]
    lines = [line for line in every if any(value is not None for value, _, _ in line.points)]
    labels = [row.model if order == "name" else f"{(row.created or '')[:10]} {row.model}" for row in chosen]
    return LineChart(chosen[0].protocol, labels, lines, "share of all samples", percent=True)


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
    found = {"name": row.model, "page": path, "group": row.group, "shares": shares, "classes": robust}
    if report.samples is not None and with_samples:
        bits = np.packbits(np.array(by_sample.robust(report.samples)))
        found |= {"n": len(report.samples.label), "bits": base64.b64encode(bits.tobytes()).decode()}
    return found
