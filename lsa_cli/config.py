"""Settings of an audit: command-line options over lsa.yaml over what the checkpoint says over defaults."""

import os
import re
import urllib.parse
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema, field_validator

from lsa_cli.errors import LsaError, UsageError, is_plain
from lsa_cli.files import read_regular
from lsa_cli.registry import SHIPPED, parse_number, unknown
from lsa_cli.report.limits import Limit, limits_of, metric_pattern
from lsa_cli.report.tables import BESIDE

CONFIG_NAME = "lsa.yaml"
JUDGED_BY = ("norm", "eps", "gate")
_LARGEST_CONFIG = 1_000_000
_MOST_THREADS = 1024  # torch crashes on many times that
_MOST_PIXELS = 4096
_HOURS, _MINUTES, _SECONDS = (rf"(?:(\d+\.?\d*)\s*{unit})?" for unit in ("h", "m(?:in)?", "s"))
_DURATION = re.compile(rf"{_HOURS}\s*{_MINUTES}\s*{_SECONDS}")  # the last unit is said, too, but for seconds alone

# What a file may say where the field holds something stricter: for editors, through `lsa schema config`.
_NUMBER = {"type": ["number", "string"]}
_NAMES = {"type": ["array", "string"], "items": {"type": "string"}}
Number = Annotated[float, WithJsonSchema(_NUMBER)]
NumberText = Annotated[str, WithJsonSchema(_NUMBER)]
Names = Annotated[list[str], WithJsonSchema(_NAMES)]


class _Settings(BaseModel):
    """An empty text, alone or in a list, chooses nothing: what stands for the default is to say nothing."""

    model_config = ConfigDict(extra="forbid", defer_build=True)

    @field_validator("*", mode="before")
    @classmethod
    def _said(cls, value: Any) -> Any:
        if any(isinstance(part, str) and not part.strip() for part in (value if isinstance(value, list) else [value])):
            raise ValueError("is empty; give a value, or leave it out")
        return value


class HardenSettings(_Settings):
    """What a user can say about a hardening, beside what an audit takes; None leaves the choice to the recipe."""

    method: str | None = Field(None, description="at-lr, at, or another of `lsa list methods`, as NAME:key=value")
    base: str | None = Field(None, description="fgsm, pgd, apgd, fast, free, trades, mart or apart")
    mvl: str | None = Field(None, description="a saved report whose most vulnerable layers are held")
    layers: Names | None = Field(None, description="names or globs of the layers that are held")
    hold: str | None = Field(
        None, description="first (default; that training moves) or last hidden layer; mvl: what a scan flags"
    )
    top_k: int | None = Field(None, description="how many layers the scan flags")
    gamma: NumberText | None = Field(None, description="weight of the regularizer: 0.5, or LAYER=0.5,LAYER=0.1")
    detach_clean: bool | None = Field(None, description="the clean branch is a fixed target")
    attack_mode: str | None = Field(None, description="eval (default) or train: mode of the network under attack")
    steps: int | None = Field(None, description="steps of the training attack")
    step_size: Number | None = Field(None, description="length of a step; default 2.5 eps / steps")
    epochs: int | None = None
    lr: Number | None = Field(None, description="highest learning rate")
    optimizer: str | None = Field(None, description="adam, adamw or sgd")
    weight_decay: Number | None = None
    schedule: str | None = Field(None, description="one-cycle, cosine or constant; or of anp: ours, official")
    batch_size: int | None = None
    val_fraction: Number | None = Field(None, description="share of the training data that is held out")
    freeze: Names | None = Field(None, description="globs over parameters or modules that stay as they are")
    train_only: str | None = Field(None, description="flagged or all (default)")
    average: str | None = Field(None, description="none, ema or swa: average of weights that is handed out")
    amp: bool | None = Field(None, description="bfloat16 where autocast has it")
    warmup: Number | None = Field(None, description="share of the training in which eps and gamma rise")
    clip: Number | None = Field(None, description="largest norm of a gradient; 0: none")
    label_smoothing: Number | None = None
    awp: Number | None = Field(None, description="size of adversarial weight perturbation; 0: none")
    augment: str | None = Field(None, description="none or crop-flip")

    @field_validator(
        "step_size", "lr", "weight_decay", "val_fraction", "warmup", "clip", "awp", "label_smoothing", mode="before"
    )
    @classmethod
    def _number(cls, value: Any, info: Any) -> Any:
        return value if value is None else parse_number(value, f"--{info.field_name.replace('_', '-')}")

    @field_validator("layers", "freeze", mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("gamma", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value

    @field_validator("hold", "attack_mode", "optimizer", "schedule", "train_only", "average", "augment")
    @classmethod
    def _one_of(cls, value: str | None, info: Any) -> str | None:
        choices = {
            "hold": ("first", "last", "mvl"), "attack_mode": ("eval", "train"), "optimizer": ("adam", "adamw", "sgd"),
            "schedule": ("one-cycle", "cosine", "constant", "ours", "official"), "train_only": ("flagged", "all"),
            "average": ("none", "ema", "swa"), "augment": ("none", "crop-flip"),
        }[info.field_name]  # fmt: skip
        if value is not None and value not in choices:
            raise ValueError(f"should be {' or '.join(choices)}, not '{value}'")
        return value

    @field_validator("epochs", "steps", "batch_size", "top_k")
    @classmethod
    def _positive(cls, value: int | None) -> int | None:
        if value is not None and value < 1:
            raise ValueError(f"should be at least 1, not {value}")
        return value

    @field_validator("lr", "step_size")
    @classmethod
    def _above_zero(cls, value: float | None) -> float | None:
        if value is not None and value <= 0:
            raise ValueError(f"should be above 0, not {value:g}")
        return value

    @field_validator("weight_decay", "clip", "awp")
    @classmethod
    def _not_negative(cls, value: float | None) -> float | None:
        if value is not None and value < 0:
            raise ValueError(f"should not be negative, as {value:g} is")
        return value

    @field_validator("val_fraction", "warmup", "label_smoothing")
    @classmethod
    def _share(cls, value: float | None) -> float | None:
        if value is not None and not 0 <= value < 1:
            raise ValueError(f"should be a share from 0 to below 1, not {value:g}")
        return value


class AuditSettings(_Settings):
    """What a user can say about an audit; None leaves the choice to the next in line."""

    arch: str | None = Field(
        None, description="torchvision:NAME, timm:NAME, pkg.mod:factory or path/to/file.py:factory"
    )
    arch_args: dict[str, Any] | None = Field(None, description="arguments of the architecture's factory")
    weights: str | None = Field(None, description="which of several sets of weights in the file")
    trust_code: bool | None = Field(None, description="run the code that the checkpoint holds")
    normalize: str | None = Field(None, description="mnist, cifar10, imagenet, none or MEAN/STD")
    input_range: Annotated[str, WithJsonSchema({"type": ["string", "array"]})] | None = Field(
        None, description="LOW,HIGH that the network takes, such as 0,255 or -1,1"
    )
    input_size: Annotated[str, WithJsonSchema({"type": ["string", "integer"]})] | None = Field(
        None, description="pixels that images are resized and cropped to; or native"
    )
    returns: str | None = Field(None, description="logits or probabilities: what the network returns")
    output_index: Annotated[str, WithJsonSchema({"type": ["string", "integer"]})] | None = Field(
        None, description="which output holds the logits, by number or name, where the network returns several"
    )
    data: str | None = Field(None, description="imagefolder:DIR, npz:FILE, torchvision:NAME?root=DIR, pkg.mod:factory")
    split: str | None = None
    match_classes: str | None = Field(None, description="name (default) or number: how labels find their output")
    limit: int | str | None = Field(None, description="how many samples, stratified by class; or all")
    attack: Names | None = Field(None, description="attack specs such as pgd:steps=40; or none")
    noise: Names | None = Field(None, description="noise specs such as gaussian:std=0.2; or none")
    corruption: Names | None = Field(None, description="corruption specs such as fog:severity=3")
    preset: str | None = Field(None, description="quick or full: which attacks")
    full_on: int | None = Field(None, description="survivors, drawn at random, that meet the cascade")
    norm: str | None = None
    eps: Number | None = None
    steps: int | None = None
    step_size: Number | None = None
    restarts: int | None = None
    noise_off: bool | None = Field(None, description="switch the learnt noise of a network off")
    metrics: Names | None = Field(None, description="further metrics, such as intensity")
    eps_grid: (
        Annotated[list[float], WithJsonSchema({"type": ["array", "number", "string"], "items": _NUMBER})] | None
    ) = Field(None, description="radii of the robustness curve")
    layers: Names | None = Field(None, description="activations, learnable, blocks, names or globs")
    measure: str | None = None
    aggregate: str | None = Field(None, description="sample (default) or batch")
    eta: Number | None = None
    sigma: str | None = Field(None, description="samples (default) or layers")
    top_k: int | None = None
    batch_size: Annotated[int | Literal["auto"] | None, WithJsonSchema({"type": ["integer", "string"]})] = Field(
        None, description="samples at once, or auto (default): found, and halved where memory runs out"
    )
    fast: bool | None = Field(None, description="attack a faster copy (default); false: the network itself")
    budget: Number | None = Field(None, description="time to spend, such as 90s, 10m or 1h30m")
    device: str | None = None
    threads: int | None = None
    seed: int | None = None
    plugin: Names | None = None
    gate: dict[str, Limit] | None = Field(
        None,
        description="metric: limit, or metric: {min or max, severity, by, allow_not_run}",
        json_schema_extra={"propertyNames": {"pattern": metric_pattern()}},
    )
    harden: HardenSettings | None = Field(None, description="settings of lsa harden")

    @field_validator("eps", "step_size", "eta", mode="before")
    @classmethod
    def _number(cls, value: Any, info: Any) -> Any:
        return value if value is None else parse_number(value, f"--{info.field_name.replace('_', '-')}")

    @field_validator("output_index", mode="before")
    @classmethod
    def _number_or_name(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("attack", "noise", "corruption", "layers", "plugin", mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("metrics", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return [name.strip() for name in value.split(",")] if isinstance(value, str) else value

    @field_validator("eps_grid", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        if value is None:
            return None
        items = value if isinstance(value, (list, tuple)) else [value]
        parts = [part for item in items for part in str(item).split(",")]
        return [parse_number(part.strip(), "eps-grid") for part in parts]

    @field_validator("gate", mode="before")
    @classmethod
    def _limits(cls, value: Any) -> Any:
        return limits_of(value) if isinstance(value, dict) else value

    @field_validator("limit")
    @classmethod
    def _limit(cls, value: Any) -> Any:
        if isinstance(value, str):
            if value == "all":
                return value
            value = int(value) if value.isdecimal() else 0
        if value is not None and value < 1:
            raise ValueError("should be a positive number of samples, or all")
        return value

    @field_validator("input_range", "input_size", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return ",".join(map(str, value))
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("input_size")
    @classmethod
    def _pixels(cls, value: str | None) -> str | None:
        if value not in (None, "native") and not (value.isdecimal() and 0 < int(value) <= _MOST_PIXELS):
            raise ValueError(f"should be native, or a number of pixels up to {_MOST_PIXELS}, not '{value}'")
        return value

    @field_validator("budget", mode="before")
    @classmethod
    def _seconds(cls, value: Any) -> Any:
        if value is None:
            return None
        text = str(value).strip()
        match = _DURATION.fullmatch(f"{text}s" if re.fullmatch(r"\d+\.?\d*", text) else text)
        parts = zip(match.groups(), (3600, 60, 1), strict=True) if match else ()
        seconds = sum(float(number or 0) * unit for number, unit in parts)
        if seconds <= 0:
            raise ValueError(f"should be a time such as 90s, 10m or 1h30m, not {value}")
        return seconds

    @field_validator("aggregate", "sigma", "match_classes", "preset")
    @classmethod
    def _one_of(cls, value: str | None, info: Any) -> str | None:
        choices = {
            "aggregate": ("sample", "batch"), "sigma": ("samples", "layers"), "match_classes": ("name", "number"),
            "preset": ("quick", "full"),
        }[info.field_name]  # fmt: skip
        if value is not None and value not in choices:
            raise ValueError(f"should be {' or '.join(choices)}, not '{value}'")
        return value

    @field_validator("batch_size", mode="before")
    @classmethod
    def _samples_at_once(cls, value: Any) -> Any:
        if isinstance(value, str) and value != "auto" and not value.isdecimal():
            raise ValueError(f"should be a whole number or auto, not {value}")
        return int(value) if isinstance(value, str) and value != "auto" else value

    @field_validator("limit", "full_on", "steps", "restarts", "batch_size", "threads", "top_k", "seed", mode="before")
    @classmethod
    def _no_bool(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError("should be a number")
        return value

    @field_validator("layers")
    @classmethod
    def _named(cls, value: list[str] | None) -> list[str] | None:
        if value is not None and not value:
            raise ValueError("should name at least one selector, layer or glob")
        return value

    @field_validator("arch_args")
    @classmethod
    def _plain_values(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is not None and not is_plain(value):
            raise ValueError("should be finite numbers, text, true, false, null, and lists and mappings of those")
        return value

    @field_validator("threads")
    @classmethod
    def _threads(cls, value: int | None) -> int | None:
        if value is not None and value > _MOST_THREADS:
            raise ValueError(f"should be at most {_MOST_THREADS}, not {value}")
        return value

    @field_validator("full_on", "steps", "restarts", "batch_size", "threads", "top_k")
    @classmethod
    def _positive(cls, value: int | str | None) -> int | str | None:
        if isinstance(value, int) and value < 1:
            raise ValueError(f"should be at least 1, not {value}")
        return value

    @field_validator("seed")
    @classmethod
    def _seed(cls, value: int | None) -> int | None:
        if value is not None and not 0 <= value < 2**31:
            raise ValueError(f"should be between 0 and 2147483647, not {value}")
        return value


def settings_from(values: dict[str, Any]) -> AuditSettings:
    """Validate option values given by name; UsageError names the option that is wrong."""
    try:
        return AuditSettings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = [part for part in first["loc"] if isinstance(part, str) and part != "harden"]
        name = place[0] if place else "harden"
        raise UsageError(f"--{name.replace('_', '-')}: {_plain(first)}") from error


def merge(*layers: tuple[str, AuditSettings]) -> tuple[AuditSettings, dict[str, str]]:
    """The first layer that sets a field wins; also, for each field that is set, which layer that was."""
    merged: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for name, settings in layers:
        for field, value in settings:
            if value is None:
                continue
            if field == "harden":  # each part of it is a setting of its own
                said = merged[field].model_dump(exclude_none=True) if field in merged else {}
                merged[field] = HardenSettings(**{**value.model_dump(exclude_none=True), **said})
                origin[field] = f"{origin[field]}, {name}" if field in origin else name
            elif field not in merged:
                merged[field], origin[field] = value, name
            elif field == "gate":  # each limit is a setting of its own
                merged[field] = {**value, **merged[field]}
                origin[field] += f", {name}"
    return AuditSettings.model_construct(**merged), origin


def config_schema() -> dict[str, Any]:
    """JSON Schema of lsa.yaml, for editors. A limit may be a bare number too; a key may have - for _."""
    schema = AuditSettings.model_json_schema()
    gate = schema["properties"]["gate"]
    limit = gate.pop("anyOf")[0]["additionalProperties"]
    gate |= {"type": ["object", "null"], "additionalProperties": {"anyOf": [_NUMBER, limit]}}
    fields = {"version": {"const": 1, "description": "of this format"}, **schema["properties"]}
    dashed = {name.replace("_", "-"): field for name, field in fields.items()}
    return {**schema, "title": "lsa.yaml", "type": ["object", "null"], "properties": {**fields, **dashed}}


# ---- lsa.yaml ------------------------------------------------------------------------------------------


class _StrictLoader(yaml.SafeLoader):
    """Plain YAML without aliases; a key that stands twice is an error instead of the last one winning."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.constructor.ConstructorError(
                None, None, "aliases are not used here", self.peek_event().start_mark
            )
        return super().compose_node(parent, index)


def find_config(explicit: str | None, checkpoint: str | Path) -> tuple[Path | None, bool]:
    """The configuration file to read, if any, and whether the user chose it (named it, or stands beside it).

    The nearest to the checkpoint wins: beside it before the working directory's.
    """
    if explicit is not None:
        if not os.path.lexists(explicit):
            raise UsageError(f"--config: there is no file {explicit}")
        return Path(explicit), True
    beside, here = Path(checkpoint).parent / CONFIG_NAME, Path.cwd() / CONFIG_NAME
    # What is no regular file is found too, and refused where it is read: settings are never left out unseen.
    if os.path.lexists(beside):
        return beside, os.path.realpath(beside) == os.path.realpath(here)
    return (here, True) if os.path.lexists(here) else (None, True)


def configurations(explicit: str | None, checkpoint: str | Path) -> list[tuple[str, AuditSettings]]:
    """The settings of the files that `find_config` finds, under the names that a report gives their origin.

    What an audit is judged by (`JUDGED_BY`) is the user's to say: where the working directory has a file too, it goes
    before one that merely lies beside the checkpoint.
    """
    path, chosen = find_config(explicit, checkpoint)
    if path is None:
        return []
    found = [(str(path) if chosen else f"{path}{BESIDE}", read_config(path, chosen))]
    here = Path.cwd() / CONFIG_NAME
    if not chosen and here.is_file():
        own = {name: value for name, value in read_config(here) if name in JUDGED_BY and value is not None}
        found.insert(0, (str(here), AuditSettings.model_construct(**own)))
    return found


def read_config(path: Path, chosen: bool = True) -> AuditSettings:
    """Settings in a YAML file. Raises UsageError that names the key and its line.

    chosen=False: the file was found beside a checkpoint, nobody named it; it then may not name Python code, nor data
    to download.
    """
    try:
        text = read_regular(path, _LARGEST_CONFIG).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    try:
        loader = _StrictLoader(text)
        try:
            node = loader.get_single_node()
        except RecursionError:
            raise UsageError(f"{path} is nested deeper than any configuration is") from None
        finally:
            loader.dispose()
        if node is None:
            return AuditSettings()
        if not isinstance(node, yaml.MappingNode):
            raise UsageError(f"{path}: line 1 should start a list of `key: value` settings")
        lines = _key_lines(node, path)
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UsageError(f"{path}{where}: not valid YAML: {getattr(error, 'problem', error)}") from error
    content = {str(key).replace("-", "_"): value for key, value in content.items()}
    version = content.pop("version", 1)
    if version != 1:
        raise UsageError(f"{path}, line {lines.get(('version',), 1)}: version {version}; this lsa reads version 1")
    try:
        settings = AuditSettings.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        line = _line(lines, first["loc"])
        if first["type"] == "extra_forbidden":
            raise UsageError(f"{path}, line {line}: {_unknown_key(first['loc'])}") from error
        if key == "harden" and len(first["loc"]) > 1:
            key = f"harden: {first['loc'][1]}"
        raise UsageError(f"{path}, line {line}: {key}: {_plain(first)}") from error
    except LsaError as error:
        raise UsageError(f"{path}, line {_refused_line(content, lines, str(error))}: {error}") from error
    if not chosen:
        _refuse_code(path, settings, lines)
    return settings


def _unknown_key(location: tuple[int | str, ...]) -> str:
    key = str(location[-1])
    if location[0] == "harden" and len(location) > 1:
        return unknown("key of harden", key, HardenSettings.model_fields)
    return unknown("key", key, AuditSettings.model_fields)


# Sources that read data and run nothing of theirs.
_SAFE_SOURCES = ("npz", "imagefolder", "torchvision", "csv", "hf", "webdataset", "cifar-c")


def _refuse_code(path: Path, settings: AuditSettings, lines: dict[tuple[str, ...], int]) -> None:
    safe_arch = (settings.arch or "lsa:").partition(":")[0] in SHIPPED
    safe_data = (settings.data or "npz:").partition(":")[0] in _SAFE_SOURCES
    safe = {"arch": safe_arch, "data": safe_data, "plugin": not settings.plugin, "trust_code": not settings.trust_code}
    for key, is_safe in safe.items():
        if not is_safe:
            what = "lets the checkpoint run its code" if key == "trust_code" else "names Python code"
            raise _not_chosen(path, lines.get((key,), 1), f"{key} {what}")
    if settings.data and downloads(settings.data):
        raise _not_chosen(path, lines.get(("data",), 1), "data names what would be downloaded")


def downloads(spec: str) -> bool:
    """Whether opening this data set could fetch it from the network and write it to the disk."""
    source, _, rest = spec.partition(":")
    location, _, query = rest.partition("?")
    asked = dict(urllib.parse.parse_qsl(query, keep_blank_values=True)).get("download", "false")
    return asked != "false" or (source == "hf" and not Path(location).is_dir())


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
                raise UsageError(f"{path}, line {key.start_mark.line + 1}: {key.value} stands twice")
            lines[name] = key.start_mark.line + 1
            lines |= _key_lines(value, path, name)
    return lines


def _refused_line(content: dict[str, Any], lines: dict[tuple[str, ...], int], message: str) -> int:
    """The line of the one setting, or limit in `gate`, that is refused with this message when it stands alone."""
    alone: list[tuple[tuple[str, ...], dict[str, Any]]] = []
    if isinstance(limits := content.get("gate"), dict):
        alone += [(("gate", str(metric)), {"gate": {metric: limit}}) for metric, limit in limits.items()]
    alone += [((key,), {key: value}) for key, value in content.items()]
    for location, values in alone:
        try:
            AuditSettings.model_validate(values)
        except LsaError as error:
            if str(error) == message:
                return _line(lines, location)
        except ValidationError:
            continue
    return 1


def _line(lines: dict[tuple[str, ...], int], location: Iterable[Any]) -> int:
    parts = tuple(str(part) for part in location)
    while parts and parts not in lines:
        parts = parts[:-1]
    return lines.get(parts, 1)


def _plain(problem: Any) -> str:
    """pydantic's message without its preamble."""
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "model_type":
        message = "should be a mapping, such as {epochs: 5}"
    shown = problem.get("input")
    return message if shown is None or str(shown) in message else f"{message} (given: {shown})"
