"""Numbers and parts of a report as people read them."""

from collections.abc import Mapping, Sequence
from typing import Any

from lsa_cli.report.protocol import ThreatModel
from lsa_cli.report.row import Draws, Rate
from lsa_cli.report.schema import Estimate, Evidence, Metric, Verdict
from lsa_cli.wording import compact, setting_as_text

QUICK_LOOK = (
    "the attacks are few or short, or the samples are fewer than 10, so the number is a loose upper bound; use more samples, and the "
    "default attacks or --full"
)


def percent(value: float | None) -> str:
    """0.8734 -> "87.3%". Only 1 is "100.0%", and only 0 is "0.0%"."""
    if value is None:
        return "-"
    text = f"{100 * value:.1f}"
    if text == "100.0" and value < 1:
        text = "99.9"
    if text == "0.0" and value > 0:
        text = "0.1"
    return f"{text}%"


def interval(rate: Rate) -> str:
    """ "[85.1, 89.2]", in percent; empty where there are no samples."""
    return "" if rate.low is None or rate.high is None else f"[{100 * rate.low:.1f}, {100 * rate.high:.1f}]"


def p_value(p: float | None) -> str:
    """Three digits; "-" where no test was made."""
    if p is None:
        return "-"
    return "< 0.001" if p < 0.001 else compact(p)


def between(verdict: Verdict) -> str:
    """ "robust between 60.0% (proven) and 62.0% (attacked) [50.2, 70.9]"; empty without a proof or without an attack.

    The interval goes from the lower end of the proven share to the upper end of the attacked share. Each end errs with 2.5%, so it
    contains the robust accuracy of the population with 95%, whatever attacks exist.
    """
    low, high = verdict.proven, verdict.robust
    if low is None or high is None or low.low is None or high.high is None:
        return ""
    bounds = f"[{100 * low.low:.1f}, {100 * high.high:.1f}]"
    if low.count == high.count:
        return f"robust {percent(low.value)} (both proven and attacked) {bounds}"
    return f"robust between {percent(low.value)} (proven) and {percent(high.value)} (attacked) {bounds}"


def proof_text(verdict: Verdict) -> str:
    """The proven share and what it says, or why there is none; empty where no proof was asked for."""
    proof = verdict.proof
    if proof is None:
        return ""
    if proof.robust is None:
        return f"not computed: {proof.left_out}"
    return f"{percent(proof.robust.value)} {interval(proof.robust)}, a lower bound within {proof.threat}"


def evidence_text(evidence: Evidence) -> str:
    """The verdict of the evidence and its findings: "doubtful (stronger-attack-wins)"."""
    found = ", ".join(finding.code for finding in evidence.findings)
    return f"{evidence.verdict} ({found})" if found else evidence.verdict


def has_several_classes(verdict: Verdict) -> bool:
    """Whether there is anything to compare: two classes or more have samples."""
    return sum(row.robust.n > 0 for row in verdict.classes) > 1


def number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def length(value: float | None, norm: str, threat: ThreatModel) -> str:
    """The size of a perturbation: in 255ths with one digit where the radius is stated so and the norm is linf, else with three digits."""
    if value is not None and norm == "linf" and threat.text.endswith("/255"):
        return f"{255 * value:.1f}/255"
    return number(value)


def data_name(source: str) -> str:
    """A data source without local folders: npz:/home/me/x.npz -> npz:x.npz."""
    kind, colon, place = source.partition(":")
    return f"{kind}{colon}{file_name(place.rstrip('/'))}" if colon else source


def listed(values: Sequence[float]) -> str:
    """Means and deviations of channels: "0.4914, 0.4822, 0.4465"."""
    return ", ".join(f"{value:.4g}" for value in values)


def file_name(path: str) -> str:
    """The last part of a path of any system."""
    return path.replace("\\", "/").rpartition("/")[2]


def numbered(names: Sequence[str]) -> list[str]:
    """The names, with a number behind each of those that are equal: "net (1)", "net (2)"."""
    return [
        name if names.count(name) == 1 else f"{name} ({names[: place + 1].count(name)})"
        for place, name in enumerate(names)
    ]


def settings_text(settings: Mapping[str, Any]) -> str:
    """An attack's hyperparameters in one line: "linf, eps 0.3, steps 20, step size 0.0375"."""
    parts = []
    for key, value in settings.items():
        if key == "norm":
            parts.append(str(value))
        elif value is not None:
            parts.append(f"{key.replace('_', ' ')} {setting_as_text(key, value)}")
    return ", ".join(parts)


def estimate_text(estimate: Estimate) -> str:
    """The estimated robust accuracy after the whole cascade, and the counts behind it."""
    return (
        f"{percent(estimate.value)} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}] estimated: it broke "
        f"{estimate.broken} of {estimate.checked} samples, drawn by margin from {estimate.survivors} that were still robust"
    )


def metric_text(metric: Metric) -> str:
    """A metric in one line: "intensity 3.21 ratio (mean: 2.80, 0.5: 2.51; n = 128, pgd)"."""
    quantiles = ", ".join(f"{share}: {number(value)}" for share, value in metric.quantiles.items())
    about = "; ".join(part for part in (quantiles, f"n = {metric.n}, {metric.attack}") if part)
    return f"{metric.name} {number(metric.value)} {metric.unit} ({about})"


def draws_text(draws: Draws) -> str:
    """For a stochastic network: that a number is a mean, and how the evaluations differ."""
    return (
        f"mean of {draws.n} evaluations of a stochastic network, sd {100 * draws.sd:.1f} points; correct in all of them: "
        f"{percent(draws.worst.value)}"
    )
