"""lsa: adversarial robustness of a saved PyTorch image classifier, layer by layer and class by class.

`audit()` and `harden()` do from Python what `lsa audit` and `lsa harden` do from a shell. Nothing heavy is imported until it is used,
so that `lsa --help` stays quick.
"""

from typing import TYPE_CHECKING, Any

from lsa_cli._version import __version__

__all__ = ["AuditReport", "__version__", "audit", "harden"]

if TYPE_CHECKING:
    from lsa_cli.auditing.api import audit
    from lsa_cli.hardening.api import harden
    from lsa_cli.report.schema import AuditReport


def __getattr__(name: str) -> Any:
    if name == "audit":
        from lsa_cli.auditing.api import audit

        return audit
    if name == "harden":
        from lsa_cli.hardening.api import harden

        return harden
    if name == "AuditReport":
        from lsa_cli.report.schema import AuditReport

        return AuditReport
    raise AttributeError(f"module 'lsa_cli' has no attribute {name!r}")
