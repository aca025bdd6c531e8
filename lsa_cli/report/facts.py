"""What was audited and how, as rows of name and text: the first lines on a terminal, and a table on the pages."""

from typing import NamedTuple

from lsa_cli.report.protocol import Data, Subject, ThreatModel
from lsa_cli.report.schema import AuditReport
from lsa_cli.report.text import listed
from lsa_cli.wording import plural, setting_as_text


class Fact(NamedTuple):
    """detail: only for outputs with room for everything."""

    name: str
    text: str
    detail: bool = False


def facts(report: AuditReport) -> list[Fact]:
    protocol = report.protocol
    top_k = f", top {protocol.top_k}" if protocol.top_k else ""
    torch = protocol.versions.get("torch", "-")
    settings = [
        f"{key} = {setting_as_text(key, protocol.settings[key])} ({origin})"
        for key, origin in protocol.settings_from.items()
        if key in protocol.settings
    ]
    rows = [
        *facts_of(report.subject, report.data, protocol.threat),
        Fact(
            "layer scan",
            f"{', '.join(protocol.layers)}; {protocol.measure} per {protocol.aggregate}; eta {protocol.eta:g}, "
            f"sigma over {protocol.sigma}{top_k}",
            True,
        ),
        Fact("attacked", protocol.attacked),
        Fact(
            "run",
            f"{protocol.device}, {plural(protocol.threads, 'thread')}, seed {protocol.seed}, torch {torch}, "
            f"{report.tool}, {report.seconds:.1f} s",
        ),
        Fact("batch size", str(protocol.batch_size), True),
        Fact("versions", ", ".join(f"{name} {version}" for name, version in protocol.versions.items()), True),
        Fact("created", report.created, True),
        Fact("settings", "; ".join(settings), True),
        Fact("note", "; ".join(report.subject.notes)),
    ]
    return [row for row in rows if row.text]


def facts_of(subject: Subject, data: Data, threat: ThreatModel) -> list[Fact]:
    """What is audited, on which samples, in which threat model: known before a run."""
    size = "" if subject.size is None else f", {subject.size:,} bytes"
    shape = "x".join(map(str, subject.input_shape))
    bounds = "none" if subject.input_range is None else f"[{subject.input_range[0]:g}, {subject.input_range[1]:g}]"
    normalize = "none" if subject.mean is None else f"mean {listed(subject.mean)}, std {listed(subject.std or [])}"
    rows = [
        Fact("checkpoint", subject.checkpoint),
        Fact("sha256", subject.sha256 or ""),
        Fact("format", f"{subject.format}{size}", True),
        Fact("architecture", f"{subject.architecture}, {subject.parameters:,} parameters, input {shape}"),
        Fact("input range", bounds, True),
        Fact("normalisation", normalize),
        Fact("output", f"{plural(len(subject.class_names), 'class', 'classes')}, {subject.output}", True),
        Fact("data", data_in_words(data)),
        Fact("fingerprint of the samples", data.fingerprint[:16], True),
        Fact("images", data.transform),
        Fact("threat", f"{threat.norm} eps {threat.text} ({threat.origin})"),
    ]
    return [row for row in rows if row.text]


def data_in_words(data: Data) -> str:
    split = f" ({data.split})" if data.split else ""
    return f"{data.source}{split}, {data.n:,} of {data.available:,} samples ({data.selection})"
