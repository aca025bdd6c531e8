"""Which method settings name, with which options, and which other settings it uses."""

from lsa_cli.errors import UsageError
from lsa_cli.hardening.methods import HARDENINGS
from lsa_cli.hardening.objectives import OBJECTIVES
from lsa_cli.hardening.schedules import SCHEDULES
from lsa_cli.registry import parse_spec
from lsa_cli.settings import HardenSettings

DEFAULT_METHOD = "at-lr"
OF_ATTACK = ("steps", "step_size", "attack_mode")


def needs_layers(method: str, options: dict[str, str], train_only: str | None) -> bool:
    """Whether a method with these options works on layers that are named or chosen."""
    return HARDENINGS.get(method).regularizes or train_only == "flagged" or options.get("sites") == "mvl"


def method_of(own: HardenSettings) -> tuple[str, dict[str, str]]:
    """The method's name, and its options with those that are said elsewhere: base, and a schedule of the method."""
    name, options = parse_spec(own.method or DEFAULT_METHOD, "method")
    method = HARDENINGS.get(name)
    if own.base is not None:
        if "base" in options:
            raise UsageError("--base and --method name:base= both name the base; give one of them")
        base, more = parse_spec(own.base, "base")
        options = {"base": base, **more, **options}
    if own.schedule is not None and own.schedule not in SCHEDULES:
        if not hasattr(method, "schedule"):
            raise UsageError(
                f"--schedule {own.schedule} is a method's, and {name} has no schedule of its own; the recipe's are "
                f"{', '.join(SCHEDULES)}"
            )
        if "schedule" in options:
            raise UsageError(f"--schedule {own.schedule} and --method both name the schedule of {name}; give one")
        options["schedule"] = own.schedule
    return name, options


def used_of_attack(method: str, options: dict[str, str]) -> tuple[str, ...]:
    """Which settings of the attack make a difference to a method with these options; a method of a plugin may use all."""
    if not hasattr(HARDENINGS.get(method), "base"):
        return OF_ATTACK
    base = base_of(method, options)
    return OBJECTIVES.get(base).uses if base is not None else ()


def base_of(method: str, options: dict[str, str]) -> str | None:
    return options.get("base", getattr(HARDENINGS.get(method), "base", None))
