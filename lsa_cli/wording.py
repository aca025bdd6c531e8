"""Counts and numbers as text. Reports in JSON and CSV have the numbers themselves."""

from collections.abc import Sequence

_LENGTHS = ("eps", "step_size")  # in units of images in [0, 1], written in 255ths


def plural(count: int, noun: str, several: str | None = None) -> str:
    """ "1 thread", "2 threads", "1,000 classes": the count with the noun. several: the plural, if not noun + "s"."""
    return f"{count:,} {noun if count == 1 else several or noun + 's'}"


def first_of(names: Sequence[str], count: int) -> str:
    """ "a, b and 3 more": the first `count` names."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def compact(value: float) -> str:
    """At most three significant digits: 0.05000000074505806 -> "0.05", 1234.5 -> "1234", 1e-05 -> "1e-5"."""
    if not 1000 <= abs(value) < 1e6:
        return f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.0f}"


def duration(seconds: float) -> str:
    """ "about 40 s", "about 12 min", "about 2.5 h"; at least one second."""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


def eps_as_text(eps: float) -> str:
    """0.0313725 -> "8/255", 0.00196078 -> "0.5/255"; other numbers to six digits, so that float32 shows no noise."""
    quarters = eps * 255 * 4
    if 0 < quarters < 512 and abs(quarters - round(quarters)) < 1e-4 and abs(eps * 100 - round(eps * 100)) > 1e-4:
        return f"{round(quarters) / 4:g}/255"
    return f"{eps:g}"


def setting_as_text(name: str, value: object) -> str:
    """The value of an option or of an attack's parameter: "8/255" for a radius or step, "0.2", "true", "ce"."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        as_eps = eps_as_text(value) if name in _LENGTHS else ""
        return as_eps if name == "eps" or "/" in as_eps else compact(value)
    if isinstance(value, (list, tuple)):
        return ", ".join(setting_as_text(name, each) for each in value)
    if isinstance(value, dict):
        return ", ".join(f"{key}={setting_as_text(key, each)}" for key, each in value.items() if each is not None)
    return str(value)
