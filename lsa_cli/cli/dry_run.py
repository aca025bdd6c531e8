"""`lsa audit --dry-run`: the plan and its estimated time."""

from typing import TYPE_CHECKING

from lsa_cli.cli.console import emit
from lsa_cli.errors import printable
from lsa_cli.wording import duration, plural, setting_as_text

if TYPE_CHECKING:
    from lsa_cli.auditing.plan import AuditPlan

_DETAILS = ("input range", "output")  # the facts for larger outputs that a plan shows too


def show_plan(plan: "AuditPlan", prepared: float) -> None:
    """prepared: seconds until the plan was made, which the command takes again."""
    from lsa_cli.auditing.layer_analysis import rule_in_words
    from lsa_cli.auditing.outcome import settings_of
    from lsa_cli.auditing.provenance import data_of, protocol_of, subject_of
    from lsa_cli.auditing.proving import estimated
    from lsa_cli.report.facts import facts_of

    plan, seconds = estimated(plan)
    known = facts_of(subject_of(plan), data_of(plan), protocol_of(plan).threat)
    short_attack = " and a short attack on a few samples" if plan.budget_attacks else ""
    rows = [(fact.name, fact.text) for fact in known if not fact.detail or fact.name in _DETAILS]
    for what, several in (("attack", plan.attacks), ("cascade", plan.cascade), ("noise", plan.noises)):
        for named in several:
            settings = ", ".join(
                f"{key}={setting_as_text(key, value)}" for key, value in settings_of(named.attack).items()
            )
            rows.append((what, f"{named.label}  {settings}"))
    if plan.proof is not None:
        rows.append(
            ("proof", f"left out: {plan.proof.left_out}" if plan.proof.left_out else f"within {plan.proof.within}")
        )
    rows += [
        ("layers", f"{len(plan.layers)}: {', '.join(layer.name for layer in plan.layers) or 'none'}"),
        ("rule", f"{plan.measure_name}, {rule_in_words(plan.rule, True)}"),
        (
            "device",
            f"{plan.network.device}, {plural(plan.threads, 'thread')}, batches of {plan.batch_size}, seed {plan.seed}",
        ),
        *(("gate", f"{metric} {limit.direction} {limit.value:g}") for metric, limit in plan.limits.items()),
        *(("note", message) for message in plan.network.notes),
        *(("warning", warning.message) for warning in plan.warnings),
        (
            "estimate",
            f"{duration(prepared + seconds)}, from timed passes{short_attack}; nothing was written",
        ),
    ]
    width = max(len(name) for name, _ in rows)
    emit("".join(printable(f"{name:{width}}  {text}") + "\n" for name, text in rows))
