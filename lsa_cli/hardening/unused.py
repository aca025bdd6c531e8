"""Settings of an audit that a hardening does not use: a key of a file gives a note, an argument of Python is refused."""

from lsa_cli.errors import UsageError
from lsa_cli.settings import AuditSettings

_UNUSED = (
    "preset", "full_on", "gate", "gate_only", "alpha", "baseline", "exit_zero", "output", "samples", "files", "csv", "github",
)  # fmt: skip


def tell_unused(settings: AuditSettings, origin: dict[str, str]) -> list[str]:
    """A note on the keys of each file that change nothing here. Raises UsageError where an argument does so."""
    by_file: dict[str, list[str]] = {}
    for name in _UNUSED:
        if getattr(settings, name) is not None:
            key = str(settings.preset) if name == "preset" else name  # full: true
            by_file.setdefault(origin.get(name, "option"), []).append(key)
    for name in by_file.pop("option", []):
        raise UsageError(f"{name} is for audits, and changes nothing in a hardening; leave it out")
    return [
        f"{', '.join(names)} of {file} change nothing in a hardening, whose audits compare before with after; audit the result "
        "for them"
        for file, names in by_file.items()
    ]
