"""lsa: adversarial robustness of a saved PyTorch image classifier, layer by layer and class by class.

`audit()` and `harden()` do in Python what `lsa audit` and `lsa harden` do in a shell. torch is imported when it is needed, so
that `lsa --help` is fast.
"""

import importlib
from typing import TYPE_CHECKING, Any

from lsa_cli._version import __version__

__all__ = ["AuditReport", "__version__", "audit", "harden"]

if TYPE_CHECKING:
    from lsa_cli.auditing.api import audit
    from lsa_cli.hardening.api import harden
    from lsa_cli.report.schema import AuditReport


_MODULES = {"audit": "auditing.api", "harden": "hardening.api", "AuditReport": "report.schema"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'lsa_cli' has no attribute {name!r}")
    return getattr(importlib.import_module(f"lsa_cli.{_MODULES[name]}"), name)
