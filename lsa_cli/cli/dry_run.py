"""`lsa audit --dry-run`: the plan and its estimated time."""

from typing import TYPE_CHECKING

from lsa_cli.cli.console import emit
from lsa_cli.errors import printable
from lsa_cli.wording import eps_as_text, plural, setting_as_text

if TYPE_CHECKING:
    from lsa_cli.auditing.plan import AuditPlan


def show_plan(plan: "AuditPlan") -> None:
    from lsa_cli.auditing.cost import estimate_seconds
    from lsa_cli.auditing.outcome import rule_in_words, settings_of
    from lsa_cli.auditing.provenance import data_of, subject_of

    subject, data = subject_of(plan), data_of(plan)
    lines = [
        f"checkpoint  {subject.checkpoint}" + (f"  sha256 {subject.sha256[:12]}" if subject.sha256 else ""),
        f"model       {subject.architecture}, {subject.parameters:,} parameters, {len(subject.class_names)} classes",
        f"input       {subject.input_shape}, range {subject.input_range}",
        f"data        {data.source}, {data.n:,} of {data.available:,} samples ({data.selection}), {data.transform}",
        f"threat      {plan.threat.norm} eps {eps_as_text(plan.threat.eps)} ({plan.eps_origin})",
    ]
    for what, several in (("attack", plan.attacks), ("cascade", plan.cascade), ("noise", plan.noises)):
        for named in several:
            settings = ", ".join(
                f"{key}={setting_as_text(key, value)}" for key, value in settings_of(named.attack).items()
            )
            lines.append(f"{what:11} {named.label}  {settings}")
    lines.append(f"layers      {len(plan.layers)}: {', '.join(layer.name for layer in plan.layers) or 'none'}")
    lines.append(f"rule        {plan.measure_name}, {rule_in_words(plan.rule, True)}")
    lines.append(
        f"device      {plan.network.device}, {plural(plan.threads, 'thread')}, batches of {plan.batch_size}, seed {plan.seed}"
    )
    lines += [f"gate        {metric} {limit.direction} {limit.value:g}" for metric, limit in plan.limits.items()]
    lines += [f"note        {message}" for message in plan.network.notes]
    lines += [f"warning     {warning.message}" for warning in plan.warnings]
    lines.append(
        f"estimate    {_duration(estimate_seconds(plan))}, from one timed batch; nothing was attacked or written"
    )
    emit("\n".join(map(printable, lines)) + "\n")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
