"""Every command of lsa that a message suggests, as it runs in a shell."""

import ast
import shlex
from collections.abc import Mapping
from typing import Any

from lsa_cli.registry import read_number
from lsa_cli.wording import setting_as_text

# Settings of the network, its data and the threat model that every command about a checkpoint needs and takes. Not --trust-code:
# that is decided anew by whoever runs the command, and a report may come from others.
OF_NETWORK = (
    "arch", "arch_args", "weights", "normalize", "input_range", "returns", "output_index", "data", "split", "input_size",
    "match_classes", "norm", "eps", "plugin",
)  # fmt: skip
OF_SAMPLES = (*OF_NETWORK, "noise_off", "limit")  # what another audit of the same samples repeats
# All settings of an audit that one command line repeats. A time budget is left out: it ended the audit before its end.
OF_AUDIT = (
    *OF_SAMPLES, "attack", "preset", "full_on", "patient", "prove", "noise", "corruption", "steps", "step_size", "restarts",
    "eps_grid", "metrics", "layers", "measure", "aggregate", "eta", "sigma", "top_k", "batch_size", "device", "threads", "fast",
    "seed", "config",
)  # fmt: skip
# What `lsa inspect` takes: it decides which network is put together from weights.
OF_INSPECT = (
    "arch",
    "arch_args",
    "weights",
    "normalize",
    "input_range",
    "data",
    "split",
    "input_size",
    "match_classes",
    "threads",
)
# Settings of the audits before and after a hardening; those of the training come on top.
OF_HARDEN = (
    *(name for name in OF_NETWORK if name != "noise_off"),
    "limit",
    "measure",
    "device",
    "threads",
    "seed",
    "config",
)
NO_DATA = "SOURCE:PATH"  # for the user to replace, where no data are known
_SHORT = {"limit": "-n"}
_REPEATED = ("arch_args", "attack", "noise", "corruption", "metrics", "layers", "plugin")


def command(name: str, file: object, settings: Mapping[str, Any], *more: str, of: tuple[str, ...] = OF_AUDIT) -> str:
    """`lsa NAME FILE` with those of the settings that are named in `of`, and with the options `more`, which win over them.

    settings: plain values by the names of the settings; None is not given.
    """
    won = {word for word in more if word.startswith("-")}
    if "--arch" in won:
        won.add("--arch-args")  # another architecture takes other arguments
    words = ["lsa", name, str(file)]
    for key in of:
        given = options_of(key, settings.get(key))
        if given and given[0] not in won:
            words += given
    return shlex.join([*words, *more])


def options_of(key: str, value: Any) -> list[str]:
    """The words that give a setting on the command line; none where it is not given, or is as without the option."""
    name = _SHORT.get(key, f"--{key.replace('_', '-')}")
    if value is None or (key == "fast" and value):
        return []
    if key == "preset":
        return [f"--{value}"]
    if isinstance(value, bool):
        return [name] if value else [f"--no-{name.removeprefix('--')}"]
    if isinstance(value, Mapping):
        texts = [f"{part}={_as_argument(each)}" for part, each in value.items()]
    elif isinstance(value, (list, tuple)):
        texts = [_text(key, each) for each in value]
    else:
        texts = [_text(key, value)]
    if key not in _REPEATED:
        texts = [",".join(texts)]
    return [word for text in texts for word in (name, text)]


def with_query(spec: str, option: str) -> str:
    """The data spec with one more option, such as mode=rgb."""
    return f"{spec}{'&' if '?' in spec else '?'}{option}"


def _as_argument(value: Any) -> str:
    """The value of an argument of an architecture; text without quotes where it cannot be read as something else."""
    if not isinstance(value, str):
        return repr(value)
    try:
        ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return repr(value) if value.lower() in ("true", "false", "none") else value
    return repr(value)


def _text(key: str, value: Any) -> str:
    """The value without loss: "8/255" for a radius, else all digits of a number."""
    text = setting_as_text(key, value)
    return text if not isinstance(value, float) or read_number(text) == value else repr(value)
