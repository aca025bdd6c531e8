"""The settings: each is declared once, as a field of `AuditSettings` or of its section `HardenSettings`."""

from collections.abc import Mapping
from typing import Any

from lsa_cli.settings.audit import AuditSettings
from lsa_cli.settings.declare import EVERYWHERE, IN_PYTHON, Scope, SettingError, read_settings, settings_of
from lsa_cli.settings.harden import HardenSettings

__all__ = ["IN_PYTHON", "AuditSettings", "HardenSettings", "SettingError", "merge", "settings_from"]

_ADDED_UP = ("gate", "files")


def settings_from(values: Mapping[str, Any], scopes: tuple[Scope, ...] = EVERYWHERE) -> AuditSettings:
    """Option values by name -> settings. Raises SettingError with the wrong option."""
    return read_settings(AuditSettings, values, scopes=scopes)


def merge(*layers: tuple[str, AuditSettings]) -> tuple[AuditSettings, dict[str, str]]:
    """Each field from the first layer that sets it; and for each field that Python has, the name of that layer.

    The parts of `harden`, the limits of `gate` and the formats of `files` are merged one by one.
    """
    merged: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for name, settings in layers:
        if settings.harden is not None:
            first = merged.get("harden", HardenSettings())
            merged["harden"] = HardenSettings(**{**settings.harden.given(), **first.given()})
            origin["harden"] = f"{origin['harden']}, {name}" if "harden" in origin else name
        for field, value in settings.given().items():
            if field not in merged:
                merged[field], origin[field] = value, name
            elif field in _ADDED_UP:
                merged[field] = {**value, **merged[field]}
                origin[field] += f", {name}"
    origin = {
        one.name: origin[one.name]
        for one in settings_of(AuditSettings)
        if one.scope in IN_PYTHON and one.name in origin
    }
    return AuditSettings(**merged), origin
