"""The JSON Schema of lsa.yaml, made from the declarations."""

from typing import Any

from lsa_cli.settings.audit import AuditSettings
from lsa_cli.settings.declare import IN_A_FILE, Option, Setting, Settings, adapter, keys_of

_NUMBER = {"type": ["number", "string"]}


def config_schema() -> dict[str, Any]:
    """JSON Schema of lsa.yaml, for editors. A key may have - for _."""
    from lsa_cli.report.limits import Limit

    limit = Limit.model_json_schema()
    body = _object(AuditSettings, {"version": {"const": 1, "description": "of this format"}})
    return {"$defs": {"Limit": limit}, "title": "lsa.yaml", **body}


def _object(kind: type[Settings], first: dict[str, Any]) -> dict[str, Any]:
    properties = dict(first)
    for name, (one, option) in keys_of(kind).items():
        if one.scope in IN_A_FILE:
            properties[name] = _property(one, option)
    dashed = {name.replace("_", "-"): value for name, value in properties.items()}
    return {"type": ["object", "null"], "properties": {**properties, **dashed}, "additionalProperties": False}


def _property(one: Setting, option: Option | None) -> dict[str, Any]:
    from lsa_cli.report.limits import metric_pattern

    text = {"description": one.help if option is None else option.help}
    if one.name == "gate" and (option is None or option.name == "fail-under"):
        limits = {
            "type": ["object", "null"],
            "propertyNames": {"pattern": metric_pattern()},
            "additionalProperties": {"anyOf": [_NUMBER, {"$ref": "#/$defs/Limit"}]},
        }
        return {**text, **(limits if option is None else {"anyOf": [limits, _TEXTS]})}
    if one.name == "checkpoints":
        return {**text, "type": ["object", "null"], "additionalProperties": {"$ref": "#"}}
    if isinstance(one.type, type) and issubclass(one.type, Settings):
        return {**text, **_object(one.type, {})}
    if option is not None and option.flag:
        return {**text, "type": ["boolean", "null"]}
    if option is not None and option.read is not None:
        return {**text, "type": ["string", "null"]}
    return {**text, "anyOf": [adapter(one.type).json_schema(), {"type": "null"}]}


_TEXTS = {"type": ["array", "string"], "items": {"type": "string"}}
