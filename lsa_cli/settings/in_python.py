"""Errors of the functions of Python name options as Python does: `eps` for --eps, `limit=9` for --limit 9, `prove=False` for --no-prove."""

import re
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lsa_cli.errors import LsaError
from lsa_cli.settings.audit import AuditSettings
from lsa_cli.settings.declare import keys_of
from lsa_cli.settings.harden import HardenSettings

_COMMAND = re.compile(r"\blsa [a-z]+ ")  # what follows is to be typed in a shell
_OPTION = re.compile(r"(?<![\w-])(\(|use )?--([a-z]+(?:-[a-z]+)*)(?: (\w+))?")


@contextmanager
def names_of_python() -> Iterator[None]:
    """Raise the LsaErrors of the block with the names of Python. It is also a decorator."""
    try:
        yield
    except LsaError as error:
        error.args = (renamed(str(error)),)
        raise


def renamed(sentence: str) -> str:
    """The sentence with keyword arguments for the options of an audit and of a hardening."""
    settings = {**keys_of(AuditSettings), **keys_of(HardenSettings)}
    off = {option.off: key for key, (_, option) in settings.items() if option is not None and option.off is not None}

    def rename(found: re.Match[str]) -> str:
        before, option, value = found.groups(default="")
        after = f" {value}" if value else ""
        if option in off:
            return f"{before}{off[option]}=False{after}"
        key = option.replace("-", "_")
        if key not in settings:
            return found[0]
        if value.isdecimal():
            return f"{before}{key}={value}"
        is_value = value and (before or value in _words(settings[key][0].type))
        return f'{before}{key}="{value}"' if is_value else f"{before}{key}{after}"

    command = _COMMAND.search(sentence)
    end = command.start() if command else len(sentence)
    return _OPTION.sub(rename, sentence[:end]) + sentence[end:]


def _words(hint: Any) -> set[str]:
    """The words that a type allows."""
    if typing.get_origin(hint) is typing.Literal:
        return set(typing.get_args(hint))
    return set().union(*map(_words, typing.get_args(hint)))
