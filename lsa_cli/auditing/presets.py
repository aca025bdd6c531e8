"""What --quick and --full stand for, and the attacks of an audit that names none."""

from typing import Any

from lsa_cli.errors import UsageError
from lsa_cli.report.schema import Warning
from lsa_cli.settings import AuditSettings

DEFAULT_LIMIT, QUICK_LIMIT = 1000, 200
DEFAULT_ATTACKS = ("fgsm", "pgd", "t-pgd")
QUICK_ATTACKS = ("fgsm", "apgd-ce:steps=10")
# In these norms, networks trained for linf hide their gradient from steps of fixed size: such attacks alone report up to
# 90% robust accuracy where a minimal-norm attack turns most samples (benchmarks/RESULTS.md).
MINIMAL_NORM = {"l2": "fmn", "l1": "fmn"}
QUICK_STEPS = 40  # of the minimal-norm attack in --quick
_NOISE_OF_QUICK = ["none"]


def chosen_attacks(preset: str | None, norm: str) -> list[str]:
    """The attacks of an audit that names none, with --quick, --full or neither."""
    minimal = [MINIMAL_NORM[norm]] if norm in MINIMAL_NORM else []
    if preset == "quick":
        return [*QUICK_ATTACKS, *(f"{name}:steps={QUICK_STEPS}" for name in minimal)]
    return [*DEFAULT_ATTACKS, *minimal, *(["ranked-cascade"] if preset == "full" else [])]


def without_preset(settings: AuditSettings) -> AuditSettings:
    """Without what `with_preset` adds again, for a command."""
    implied = settings.preset == "quick" and settings.noise == _NOISE_OF_QUICK
    return settings.replace(noise=None) if implied else settings


def with_preset(
    settings: AuditSettings, origin: dict[str, str]
) -> tuple[AuditSettings, dict[str, str], list[Warning]]:  # fmt: skip
    """The settings that follow from others: those of a preset; --gate-only takes all samples, or with
    --baseline those of it (`selection`); --full-on is of --full.

    Between a preset and a list of attacks, the option wins over the file. Raises UsageError where both are from one place.
    """
    if settings.gate_only and settings.baseline is None and settings.limit is None:
        settings = settings.replace(limit="all")
    if settings.full_on is not None and settings.preset is None and settings.attack is None:
        settings = settings.replace(preset="full")
        origin = {**origin, "preset": origin.get("full_on", "option")}
    if settings.preset is None:
        return settings, origin, []
    warnings: list[Warning] = []
    by_preset, by_attack = origin.get("preset", "option"), origin.get("attack", "option")
    if settings.attack is not None:
        name = settings.preset
        if by_preset == by_attack == "option":
            raise UsageError(f"--{name} chooses the attacks; leave out --attack, or --{name}")
        if by_preset == by_attack:
            raise UsageError(f"{by_preset}: preset: {name} chooses the attacks; leave out attack, or preset: {name}")
        if by_attack == "option":
            message = f"preset {settings.preset} of {by_preset} is not used: --attack chooses the attacks"
            origin = {name: where for name, where in origin.items() if name != "preset"}
            return settings.replace(preset=None), origin, [Warning(code="unused-setting", message=message)]
        message = f"the attacks listed in {by_attack} are not used: --{settings.preset} chooses them"
        warnings.append(Warning(code="unused-setting", message=message))
    changes: dict[str, Any] = {"attack": None}
    if settings.preset == "quick":
        changes["noise"] = settings.noise or _NOISE_OF_QUICK
        message = "--quick: few samples and short attacks only; the robust accuracy is a loose upper bound"
        warnings.append(Warning(code="quick", message=message))
    return settings.replace(**changes), {**origin, "attack": by_preset}, warnings
