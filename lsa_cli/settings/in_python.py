"""Errors of the functions of Python name options as Python does: `eps` for --eps, `prove=False` for --no-prove."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from lsa_cli.errors import LsaError
from lsa_cli.settings.audit import AuditSettings
from lsa_cli.settings.declare import keys_of
from lsa_cli.settings.harden import HardenSettings

_COMMAND = re.compile(r"\blsa [a-z]+ ")  # what follows is to be typed in a shell
_OPTION = re.compile(r"(?<![\w-])--([a-z]+(?:-[a-z]+)*)")


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
    names = {}
    for key, (_, option) in {**keys_of(AuditSettings), **keys_of(HardenSettings)}.items():
        names[key.replace("_", "-")] = key
        if option is not None and option.off is not None:
            names[option.off] = f"{key}=False"
    command = _COMMAND.search(sentence)
    end = command.start() if command else len(sentence)
    return _OPTION.sub(lambda found: names.get(found[1], found[0]), sentence[:end]) + sentence[end:]
