"""The log of a training: one line of JSON per epoch, and scalars for TensorBoard."""

import json
from collections.abc import Callable
from pathlib import Path

from lsa_cli import distributed
from lsa_cli.errors import RunError
from lsa_cli.hardening.files import Files
from lsa_cli.hardening.watchdog import EpochResult


def write_log(path: Path, results: list[EpochResult], fresh: bool) -> None:
    try:
        with path.open("w" if fresh else "a", encoding="utf-8") as file:
            file.writelines(json.dumps(result.plain(), allow_nan=False) + "\n" for result in results)
    except OSError as error:
        raise RunError(f"the log {path} cannot be written: {error.strerror or error}") from error


def tensorboard(files: Files) -> Callable[[str, float, int], None]:
    """A function that writes (name, value, epoch) for TensorBoard, where it is installed."""
    if distributed.rank() != 0:
        return lambda name, value, epoch: None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return lambda name, value, epoch: None
    writer = SummaryWriter(str(files.beside("tensorboard")))

    def write(name: str, value: float, epoch: int) -> None:
        writer.add_scalar(name, value, epoch)
        writer.flush()

    return write
