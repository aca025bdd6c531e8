"""Names and words in settings that no audit knows: they are refused before a checkpoint is read."""

from collections.abc import Callable, Iterator
from functools import partial

from lsa_cli.attacks import ATTACKS, CORRUPTIONS, NOISES, make_threat
from lsa_cli.auditing.metrics import METRICS
from lsa_cli.auditing.network import refuse_no_device
from lsa_cli.errors import UsageError
from lsa_cli.measures import MEASURES
from lsa_cli.models.classifier import AUTO, parse_input_range, parse_normalize
from lsa_cli.registry import Registry, parse_spec
from lsa_cli.report.formats import FORMATS
from lsa_cli.settings import AuditSettings, SettingError

_Check = tuple[tuple[str, ...], Callable[[], object]]  # the key, and what raises UsageError for its value


def refuse_unknown_names(settings: AuditSettings) -> None:
    """Raises SettingError for an unknown name. Every plugin must be loaded."""
    _run(_words(settings))
    _run(_names(settings))


def refuse_unknown_in_file(settings: AuditSettings) -> None:
    """The same for the settings of one file. If it names plugins, they are not loaded yet, and names are not checked."""
    _run(_words(settings))
    if not settings.plugin:
        _run(_names(settings))


def _words(settings: AuditSettings) -> Iterator[_Check]:
    if settings.norm is not None:
        yield ("norm",), partial(make_threat, settings.norm, 0)
    if settings.device is not None:
        yield ("device",), partial(refuse_no_device, settings.device)
    if settings.normalize not in (None, AUTO):
        yield ("normalize",), partial(parse_normalize, settings.normalize)
    if settings.input_range is not None:
        yield ("input_range",), partial(parse_input_range, settings.input_range)


def _names(settings: AuditSettings) -> Iterator[_Check]:
    kinds = (("attack", ATTACKS), ("noise", NOISES), ("corruption", CORRUPTIONS))
    for key, registry in kinds:
        for spec in getattr(settings, key) or []:
            if spec != "none":
                yield (key,), partial(_of_spec, spec, registry)
    for name in settings.metrics or []:
        yield ("metrics",), partial(METRICS.get, name)
    if settings.measure is not None:
        yield ("measure",), partial(MEASURES.get, settings.measure)
    for name in settings.files or {}:
        yield ("files", name), partial(FORMATS.get, name)


def _of_spec(spec: str, registry: Registry[type]) -> None:
    registry.get(parse_spec(spec, registry.noun)[0])


def _run(checks: Iterator[_Check]) -> None:
    for key, check in checks:
        try:
            check()
        except UsageError as error:
            raise SettingError(key, str(error), whole=True) from error
