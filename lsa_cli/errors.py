"""The errors and their exit codes. A message says what is wrong, where, and what to do."""

import json
import unicodedata
from collections.abc import Iterable
from typing import Any

EXIT_OK = 0
EXIT_GATE = 1  # a gate was breached, or could not be decided
EXIT_USAGE = 2  # usage or input error: options, configuration, a checkpoint or data set that cannot be used
EXIT_BROKEN = 3  # the run broke; what was measured is saved
EXIT_INTERRUPTED = 130

_LONGEST = 1500  # characters of a message
_SHOWN_AS_CODES = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")  # Cf: changes the direction of text, or has no width


def printable(text: str) -> str:
    """`text` on one line, with codes for invisible characters and for those that control a terminal."""
    if text.isprintable():
        return text
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in _SHOWN_AS_CODES else c for c in text
    )


def is_plain(value: Any) -> bool:
    """Whether a report can hold `value`: text, finite numbers, true, false, null, and lists and mappings of those."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def summary_of(error: BaseException) -> str:
    """The type of an error and the first line of its message."""
    lines = str(error).strip().splitlines() or [""]
    line = lines[0].partition(" Hint: ")[0].rstrip(". ")
    return f"{type(error).__name__}: {line[:300]}" if line else type(error).__name__


def _bounded(text: str) -> str:
    text = printable(" ".join(text.split()))
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"


class LsaError(Exception):
    """Base of every error that ends in one sentence instead of a traceback.

    commands: those of which one comes next. A terminal shows each on a line of its own.
    """

    exit_code = EXIT_USAGE

    def __init__(self, sentence: str = "", commands: Iterable[str] = ()) -> None:
        super().__init__(sentence)
        self.commands = tuple(commands)

    @property
    def without_commands(self) -> str:
        """What is wrong, without the commands: one line of bounded length, even with hostile names of a file in it."""
        return _bounded(super().__str__())

    def __str__(self) -> str:
        """One line of bounded length."""
        commands = " | or ".join(self.commands)
        return _bounded(f"{self.without_commands}: {commands}") if commands else self.without_commands


class UsageError(LsaError):
    """An option, a spec or a configuration file that cannot be used."""


class CheckpointError(LsaError):
    """A model file that cannot be read, or does not fit its architecture."""


class DataError(LsaError):
    """A data set that cannot be read, or does not fit the model."""


class ConvertibleError(DataError):
    """Images that the network takes with another option. queries: options of the data spec, such as mode=rgb, one of which
    converts them. words: options of the command in place of these."""

    def __init__(self, sentence: str, queries: tuple[str, ...] = (), words: tuple[str, ...] = ()) -> None:
        super().__init__(sentence)
        self.queries, self.words = queries, words


class SplitError(DataError):
    """A data set without the requested split, or without a test split where none is requested."""


class LayerError(LsaError):
    """A layer selection that matches no layer of the network."""


class NumericalError(LsaError):
    """A network whose outputs cannot be judged: NaN, constant, not logits."""


class ForwardError(CheckpointError):
    """The user's network fails in its own forward pass."""


class BackwardError(NumericalError):
    """The user's network fails in its own backward pass, so there is no input gradient."""


class RunError(LsaError):
    """The run broke: out of memory, a file that can no longer be written."""

    exit_code = EXIT_BROKEN


class RankLost(RunError):
    """Another rank has ended, and this one cannot continue without it."""
