"""A hardening that follows an audit: what the user says of it stands, the audit adds the layers it flagged and its attack."""

from typing import Any

from lsa_cli.errors import UsageError
from lsa_cli.hardening.base import HARDENINGS
from lsa_cli.hardening.bases import BASES
from lsa_cli.hardening.plan import method_of, needs_layers
from lsa_cli.report.schema import AuditReport
from lsa_cli.report.tables import strongest
from lsa_cli.settings import HardenSettings


def before_audit(own: HardenSettings, scans: bool) -> tuple[HardenSettings, list[str]]:
    """Settings that can be planned already, and what gives way in them, in words.

    scans: whether the audit looks at layers under an attack. Raises UsageError where its layers are needed and it does not.
    """
    if not _takes_layers(own):
        return own, []
    if not scans:
        raise UsageError(
            "--harden holds the layers that an attack moved most, and this audit scans none: leave out what turns layers "
            "or attacks off, or name layers under `harden:` in lsa.yaml"
        )
    gone = [name for name in ("mvl", "hold", "top_k") if getattr(own, name) is not None]
    notes = [f"{name} under harden: gives way to the layers that this audit flags" for name in gone]
    return own.replace(mvl=None, top_k=None, hold="mvl"), notes


def after_audit(own: HardenSettings, report: AuditReport) -> tuple[HardenSettings, list[str]]:
    """The settings of `before_audit` with what the audit found, and that in words.

    Raises UsageError where the audit came to no layers, as when its time ran out.
    """
    top, found, notes = strongest(report, scanned=True), dict[str, Any](), []
    if _takes_layers(own):
        if top is None or top.layers is None or not top.layers.mvl:
            raise UsageError(
                "--harden holds the layers that an attack moved most, and none was scanned under an attack"
            )
        found |= {"layers": top.layers.mvl, "hold": None}
        notes.append(f"hardening {', '.join(top.layers.mvl)}, flagged under {top.name}")
    if top is not None and _takes_base(own):
        base = next((name for name in ("apgd", "fgsm") if top.spec.startswith(name)), "pgd")
        found["base"] = base
        notes.append(f"hardening with base {base}, for {top.name}")
        # A minimal-norm attack's steps are of another kind: of them, training takes nothing.
        settings = top.settings if top.kind == "budget" else {}
        for name in ("steps", "step_size"):
            said = getattr(own, name)
            used = name in BASES.get(base).uses
            found[name] = None if not used else settings.get(name) if said is None else said
            if said is not None and not used:
                notes.append(f"{name} under harden: gives way: base {base} does not use it")
    return own.replace(**found), notes


def _takes_layers(own: HardenSettings) -> bool:
    """Whether layers are held and the user names none."""
    return own.layers is None and needs_layers(*method_of(own), own.train_only)


def _takes_base(own: HardenSettings) -> bool:
    """Whether the method trains against an attack and the user names none."""
    method, options = method_of(own)
    return "base" not in options and getattr(HARDENINGS.get(method), "base", None) is not None
