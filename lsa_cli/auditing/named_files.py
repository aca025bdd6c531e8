"""The files beside the checkpoint that decide the numbers of an audit: Python code and data that the settings name."""

from pathlib import Path
from typing import Any

from lsa_cli.auditing.network import Network
from lsa_cli.data import code_of, file_of
from lsa_cli.files import digest_of
from lsa_cli.imports import sources_of
from lsa_cli.models.architectures import runs_user_code
from lsa_cli.settings import AuditSettings


def named_files(network: Network, data: Any = None) -> dict[str, str]:
    """A digest of each file, by its path. data: given in Python instead of the settings; only a text names files.

    To be called once the network has run, when its code is imported. Data in folders and data sets of libraries are left
    out: they are too many files to read before each audit (our choice).
    """
    settings = network.settings
    spec = settings.data if data is None else data
    by_checkpoint = data is None and network.origin.get("data") == "the checkpoint" and network.checkpoint is not None
    beside = Path(network.checkpoint.path).parent if by_checkpoint and network.checkpoint is not None else None
    found: dict[str, str] = {}
    for module in _code(settings, spec if isinstance(spec, str) else None):
        found |= sources_of(module)
    file = file_of(spec, beside) if isinstance(spec, str) else None
    if file is not None:
        found[str(file)] = digest_of(file)
    return dict(sorted(found.items()))


def names_code(settings: AuditSettings) -> bool:
    """Whether the settings name Python code, so that the same settings can give other numbers."""
    return bool(_code(settings, settings.data))


def _code(settings: AuditSettings, data: str | None) -> list[str]:
    """The modules and Python files of --plugin, --arch and --data."""
    found = list(settings.plugin or [])
    if settings.arch is not None and ":" in settings.arch and runs_user_code(settings.arch):
        found.append(settings.arch.rpartition(":")[0])
    if data is not None and (module := code_of(data)) is not None:
        found.append(module)
    return found
