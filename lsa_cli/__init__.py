"""lsa: adversarial robustness of a saved PyTorch image classifier, layer by layer and class by class.

`audit()` and `harden()` do in Python what `lsa audit` and `lsa harden` do in a shell; `attack()` and `scan()` are two parts of an
audit alone. torch is imported when it is needed, so that `lsa --help` is fast.
"""

import importlib
from typing import TYPE_CHECKING, Any

from lsa_cli._version import __version__

__all__ = ["AuditReport", "__version__", "attack", "audit", "harden", "scan"]

if TYPE_CHECKING:
    from lsa_cli.auditing.api import audit
    from lsa_cli.auditing.parts import attack, scan
    from lsa_cli.hardening.api import harden
    from lsa_cli.report.schema import AuditReport


_MODULES = {
    "attack": "auditing.parts", "audit": "auditing.api", "harden": "hardening.api", "scan": "auditing.parts",
    "AuditReport": "report.schema",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'lsa_cli' has no attribute {name!r}")
    return getattr(importlib.import_module(f"lsa_cli.{_MODULES[name]}"), name)
