"""The commands that refusals of a file suggest: those of the user again, with what was missing."""

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lsa_cli.auditing.presets import without_preset
from lsa_cli.commands import NO_DATA, OF_HARDEN, OF_INSPECT, command, with_query
from lsa_cli.errors import ConvertibleError, DataError
from lsa_cli.models.checkpoint import Description
from lsa_cli.settings import AuditSettings


def asked_for(settings: AuditSettings, description: Description | None) -> AuditSettings:
    """The settings of the user, with a word in place of data where neither they nor the file name any."""
    named = settings.data is not None or (description is not None and description.data is not None)
    return settings if named else settings.replace(data=NO_DATA)


def asked_of(settings: AuditSettings, origin: Mapping[str, str], description: Description | None) -> AuditSettings:
    """As `asked_for`, from settings that the file has completed. origin: where each comes from."""
    stated: dict[str, Any] = {name: None for name, place in origin.items() if place == "the checkpoint"}
    return asked_for(settings.replace(**stated), description)


def audit_command(file: object, asked: AuditSettings, *more: str) -> str:
    """The audit of a file with the settings of the user, and with the options `more`, which win over them."""
    return command("audit", file, _plain(asked), *more)


def command_again(file: object, asked: AuditSettings, *more: str) -> str:
    """As `audit_command`; the hardening where the settings have its own."""
    if asked.harden is None:
        return audit_command(file, asked, *more)
    own = asked.harden.given()
    return command("harden", file, {**_plain(asked), **own}, *more, of=(*OF_HARDEN, *own))


def write_command(file: object, asked: AuditSettings) -> str:
    """The command that writes the network of a file as Python."""
    return command("inspect", file, _plain(asked), "--write-arch", written_to(), of=OF_INSPECT)


def written_to() -> str:
    """A file in the working directory that is not there yet: net.py, net2.py, ..."""
    names = itertools.chain(["net.py"], (f"net{number}.py" for number in itertools.count(2)))
    return next(name for name in names if not Path(name).exists())


@contextmanager
def with_commands(file: object, asked: AuditSettings | None) -> Iterator[None]:
    """Within: images that the network takes with another option are refused with the command that has it. asked: None where
    no command can give the data."""
    try:
        yield
    except ConvertibleError as error:
        choices: list[tuple[str, ...]] = [
            ("--data", with_query(asked.data, one)) for one in error.queries if asked and asked.data
        ]
        choices += [error.words] if error.words else []
        if asked is None or not choices:
            raise
        raise DataError(str(error), [command_again(file, asked, *one) for one in choices]) from error


def _plain(asked: AuditSettings) -> dict[str, Any]:
    return {**without_preset(asked).recorded(), "config": asked.config}
