"""How far an audit or a training is: a bar on a terminal or in a notebook, lines in a file or pipe."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from lsa_cli.errors import printable
from lsa_cli.wording import duration

_PERIOD = 600.0  # seconds whose speed tells the time left: sixteen samples of a proof can take a minute (our choice)
_EVERY = 60.0  # seconds between two lines (our choice)
Report = Callable[[str, float, float], None]  # what is running, work done, work in all


@contextmanager
def progress_bar(console: Console) -> Iterator[Report]:
    """A bar with the current step and the time left, which is removed at the end; in a file or pipe a line each minute."""
    if not (console.is_terminal or console.is_jupyter):
        yield in_lines(console)
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("done,"), TimeRemainingColumn(),
        TextColumn("left"),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True, speed_estimate_period=_PERIOD) as bar:
        task = bar.add_task("starting", total=None)

        def update(what: str, done: float, total: float) -> None:
            bar.update(task, description=what, completed=done, total=total)

        yield update


@contextmanager
def in_python(asked: bool | Report | None) -> Iterator[Report]:
    """The progress of a call in Python. asked: a bar or none, or a function that gets it; None: a bar in notebooks alone."""
    console = Console(stderr=True)
    if callable(asked):
        yield asked
    elif asked or (asked is None and console.is_jupyter):
        with progress_bar(console) as report:
            yield report
    else:
        yield _silent


def in_lines(console: Console, every: float = _EVERY) -> Report:
    """Prints what is running, the share that is done, and the time left, where `every` seconds have passed since the last line."""
    began = last = time.monotonic()

    def update(what: str, done: float, total: float) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < every or not 0 < done <= total:
            return
        last = now
        left = duration((now - began) * (total - done) / done)
        console.print(
            f"lsa: {printable(what)}: {done / total:.0%} done, {left} left",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )

    return update


def _silent(what: str, done: float, total: float) -> None: ...
