"""A bar that shows how far an audit or a training is, on a terminal or in a notebook."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

_PERIOD = 600.0  # seconds whose speed tells the time left: sixteen samples of a proof can take a minute (our choice)
Report = Callable[[str, float, float], None]  # what is running, work done, work in all


@contextmanager
def progress_bar(console: Console) -> Iterator[Report]:
    """A bar with the current step and the time left, which is removed at the end; nothing in a file or pipe."""
    if not (console.is_terminal or console.is_jupyter):
        yield _silent
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


def _silent(what: str, done: float, total: float) -> None: ...
