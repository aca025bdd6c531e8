"""What an audit refuses of the attacks in a settings file, whatever the checkpoint and the data are."""

from collections.abc import Iterator

from lsa_cli.attacks import make_threat
from lsa_cli.attacks.threat import NORMS
from lsa_cli.auditing.named_attacks import make_attacks, refuse_no_cascade
from lsa_cli.auditing.presets import chosen_attacks, with_preset
from lsa_cli.errors import UsageError
from lsa_cli.settings import AuditSettings, merge


def refuse_alone(settings: AuditSettings, file: str) -> None:
    """Raises UsageError for attacks, and settings of attacks, with which no audit runs that has no option beside this file.

    Limits are not looked at: options such as --prove and --baseline often come from the command line. Of a file with settings of
    single checkpoints, these are looked at together with the rest. A file that names plugins is passed over, since they are not
    loaded.
    """
    for own in _variants(settings, file):
        if own.plugin:
            continue
        try:
            _refuse(own, file)
        except UsageError as error:
            raise UsageError(f"{file}: {error}") from error


def _variants(settings: AuditSettings, file: str) -> Iterator[AuditSettings]:
    for own in (settings.checkpoints or {}).values():
        yield merge((file, own), (file, settings))[0]
    if not settings.checkpoints:
        yield settings


def _refuse(settings: AuditSettings, file: str) -> None:
    settings = with_preset(settings, dict.fromkeys(settings.given(), file))[0]
    errors: list[UsageError] = []
    for norm in NORMS if settings.norm is None else (settings.norm,):  # a checkpoint can state any
        attack = settings.attack if settings.preset is None else chosen_attacks(settings.preset, norm)
        threat = make_threat(norm, settings.eps or 0)
        try:
            refuse_no_cascade(settings, make_attacks(settings.replace(attack=attack), threat, is_stochastic=False)[1])
        except UsageError as error:
            errors.append(error)
        else:
            return
    raise errors[0]
