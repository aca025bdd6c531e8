"""lsa.yaml: which file is read, what it may say, and the line of a mistake."""

import os
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from lsa_cli.errors import UsageError
from lsa_cli.files import read_regular
from lsa_cli.registry import SHIPPED
from lsa_cli.report.origin import BESIDE
from lsa_cli.settings import AuditSettings, SettingError, merge
from lsa_cli.settings.declare import IN_A_FILE, keys_of, read_settings

CONFIG_NAME = "lsa.yaml"
JUDGED_BY = ("norm", "eps", "gate")
_LARGEST_CONFIG = 1_000_000
Check = Callable[[AuditSettings], None]  # raises SettingError


class _StrictLoader(yaml.SafeLoader):
    """Plain YAML without aliases."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.constructor.ConstructorError(None, None, "aliases are not allowed", self.peek_event().start_mark)
        return super().compose_node(parent, index)


def find_config(explicit: str | None, checkpoint: str | Path) -> tuple[Path | None, bool]:
    """The configuration file to read, if any, and whether the user chose it: named it, or works in its folder.

    A file beside the checkpoint wins over one in the working directory.
    """
    if explicit is not None:
        if not os.path.lexists(explicit):
            raise UsageError(f"--config: there is no file {explicit}")
        return Path(explicit), True
    beside, here = Path(checkpoint).parent / CONFIG_NAME, Path.cwd() / CONFIG_NAME
    # Anything but a regular file is found too, and refused when it is read: no settings are skipped silently.
    if os.path.lexists(beside):
        return beside, os.path.realpath(beside) == os.path.realpath(here)
    return (here, True) if os.path.lexists(here) else (None, True)


def configurations(
    explicit: str | None, checkpoint: str | Path, check: Check | None = None
) -> list[tuple[str, AuditSettings]]:
    """The settings of the files that apply, under the names that a report gives their origin.

    The user decides by what an audit is judged (`JUDGED_BY`): for these settings, a file in the working directory wins over
    one that lies beside the checkpoint.
    """
    path, chosen = find_config(explicit, checkpoint)
    if path is None:
        return []
    settings = read_config(path, chosen, check)
    found = [*_for(checkpoint, str(path), settings), (str(path) if chosen else f"{path}{BESIDE}", settings)]
    here = Path.cwd() / CONFIG_NAME
    if not chosen and here.is_file():
        own = {name: value for name, value in read_config(here, check=check).given().items() if name in JUDGED_BY}
        found.insert(0, (str(here), AuditSettings(**own)))
    return found


def _for(checkpoint: str | Path, file: str, settings: AuditSettings) -> Iterator[tuple[str, AuditSettings]]:
    """The settings under `checkpoints:` whose glob fits, the last one first."""
    for glob, own in reversed((settings.checkpoints or {}).items()):
        if fits(glob, checkpoint):
            yield f"{file}, checkpoints: {glob}", own


def fits(glob: str, checkpoint: str | Path) -> bool:
    """Whether the end of a path fits a glob: * goes across folders; **/ stands for one or more of them, or for none."""
    path = f"/{Path(checkpoint).as_posix()}"
    return any(fnmatchcase(path, f"*/{glob.replace('**/', part)}") for part in ("*/", ""))


def merged(
    given: AuditSettings, explicit: str | None, checkpoint: str | Path, check: Check | None = None
) -> tuple[AuditSettings, dict[str, str], list[str]]:
    """The options over the settings of `configurations`; where each setting comes from; the names of the files."""
    files = configurations(explicit, checkpoint, check)
    settings, origin = merge(("option", given), *files)
    return settings, origin, [name for name, _ in files]


def read_config(path: Path, chosen: bool = True, check: Check | None = None) -> AuditSettings:
    """The settings in a YAML file. Raises UsageError with the key and its line.

    chosen=False: the file was found beside a checkpoint. Then it may not name Python code, data to download or outputs.
    check: called with the settings, for what reading them cannot refuse.
    """
    try:
        text = read_regular(path, _LARGEST_CONFIG).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    try:
        loader = _StrictLoader(text)
        node = loader.get_single_node()
        if node is None:
            return AuditSettings()
        if not isinstance(node, yaml.MappingNode):
            raise UsageError(f"{path}: line 1 must start a list of `key: value` settings")
        lines = _key_lines(node, path)
        content = loader.construct_document(node)
    except RecursionError:
        raise UsageError(f"{path} is nested too deeply") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UsageError(f"{path}{where}: not valid YAML: {getattr(error, 'problem', error)}") from error
    content = {str(key): value for key, value in content.items()}
    version = content.pop("version", 1)
    if version != 1:
        raise UsageError(f"{path}, line {lines.get(('version',), 1)}: version {version}; this lsa reads version 1")
    try:
        settings = read_settings(AuditSettings, content, "key", IN_A_FILE)
        if check is not None:
            _check_all(settings, check)
    except SettingError as error:
        sentence = error.sentence if error.whole else f"{': '.join(error.key)}: {error.sentence}"
        raise UsageError(f"{path}, line {_line(lines, error.key)}: {sentence}") from error
    if not chosen:
        _refuse_code(path, settings, lines)
        _refuse_outputs(path, content, lines)
    return settings


def _check_all(settings: AuditSettings, check: Check) -> None:
    check(settings)
    for glob, own in (settings.checkpoints or {}).items():
        try:
            check(own)
        except SettingError as error:
            error.key = ("checkpoints", glob, *error.key)
            raise


def _refuse_code(path: Path, settings: AuditSettings, lines: dict[tuple[str, ...], int]) -> None:
    """Raises UsageError if the file names code to run, or data to download."""
    from lsa_cli.data import may_download, runs_user_code  # not above: they need torch, and a configuration does not

    safe_arch = (settings.arch or "lsa:").partition(":")[0] in SHIPPED
    safe_data = settings.data is None or not runs_user_code(settings.data)
    safe = {"arch": safe_arch, "data": safe_data, "plugin": not settings.plugin, "trust_code": not settings.trust_code}
    for key, is_safe in safe.items():
        if not is_safe:
            what = "lets the checkpoint run its code" if key == "trust_code" else "names Python code"
            raise _not_chosen(path, lines.get((key,), 1), f"{key} {what}")
    if settings.data and may_download(settings.data):
        raise _not_chosen(path, lines.get(("data",), 1), "data names data to download")


def _refuse_outputs(path: Path, content: dict[str, Any], lines: dict[tuple[str, ...], int]) -> None:
    """Raises UsageError if the file decides what is written, or how the command ends."""
    for key in content:
        if keys_of(AuditSettings)[key.replace("-", "_")][0].scope != "measured":
            raise _not_chosen(path, _line(lines, (key,)), f"{key} decides what is written, or how the command ends")


def _not_chosen(path: Path, line: int, what: str) -> UsageError:
    return UsageError(
        f"{path}, line {line}: {what}, and this file was found beside the checkpoint, not chosen by you; if you trust it, "
        f"name it with --config {path}"
    )


def _key_lines(node: Any, path: Path, prefix: tuple[str, ...] = ()) -> dict[tuple[str, ...], int]:
    lines: dict[tuple[str, ...], int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = (*prefix, str(key.value).replace("-", "_") if not prefix else str(key.value))
            if name in lines:
                raise UsageError(f"{path}, line {key.start_mark.line + 1}: {key.value} is given twice")
            lines[name] = key.start_mark.line + 1
            lines |= _key_lines(value, path, name)
    return lines


def _line(lines: dict[tuple[str, ...], int], parts: tuple[str, ...]) -> int:
    parts = (parts[0].replace("-", "_"), *parts[1:])
    while parts and parts not in lines:
        parts = parts[:-1]
    return lines.get(parts, 1)
