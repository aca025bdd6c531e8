"""The method of the settings, its options, and the other settings that it uses."""

from lsa_cli.errors import UsageError
from lsa_cli.hardening.methods import HARDENINGS
from lsa_cli.hardening.objectives import OBJECTIVES
from lsa_cli.hardening.schedules import SCHEDULES
from lsa_cli.registry import parse_spec
from lsa_cli.settings import HardenSettings

DEFAULT_METHOD, REGULARIZED = "at", "at-lr"
_OF_LAYERS = ("mvl", "layers", "hold", "top_k", "gamma", "detach_clean")  # settings of the regularizer
ATTACK_SETTINGS = ("train_eps", "steps", "step_size", "attack_mode")


def needs_layers(method: str, options: dict[str, str], train_only: str | None) -> bool:
    """Whether a method with these options needs layers, named or chosen by a rule."""
    kind = HARDENINGS.get(method)
    return kind.regularizes or kind.chooses or train_only == "flagged" or options.get("sites") == "mvl"


def method_of(own: HardenSettings) -> tuple[str, dict[str, str]]:
    """The name of the method and its options, including --base and a --schedule of the method. Raises UsageError.

    Where no method is named it is at-lr if a setting of the regularizer is given, else at.
    """
    regularizes = own.train_only == "flagged" or any(getattr(own, name) is not None for name in _OF_LAYERS)
    name, options = parse_spec(own.method or (REGULARIZED if regularizes else DEFAULT_METHOD), "method")
    method = HARDENINGS.get(name)
    if own.base is not None:
        if "base" in options:
            raise UsageError("--base and --method name:base= both name the base objective; give one of them")
        base, more = parse_spec(own.base, "base")
        options = {"base": base, **more, **options}
    if own.schedule is not None and own.schedule not in SCHEDULES:
        if not hasattr(method, "schedule"):
            raise UsageError(
                f"--schedule {own.schedule} is the schedule of a method, and {name} has none; schedules of the learning rate are "
                f"{', '.join(SCHEDULES)}"
            )
        if "schedule" in options:
            raise UsageError(f"--schedule {own.schedule} and --method both name the schedule of {name}; give one")
        options["schedule"] = own.schedule
    return name, options


def attack_settings_used(method: str, options: dict[str, str]) -> tuple[str, ...]:
    """The attack settings that change what a method with these options does. A method of a plugin may use all."""
    if not hasattr(HARDENINGS.get(method), "base"):
        return ATTACK_SETTINGS if HARDENINGS.get(method).attacks else ()
    base = base_of(method, options)
    return OBJECTIVES.get(base).uses if base is not None else ()


def base_of(method: str, options: dict[str, str]) -> str | None:
    return options.get("base", getattr(HARDENINGS.get(method), "base", None))
