"""The images that a network is audited on, of the channels and the size that it takes."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lsa_cli.attacks.base import undisturbed
from lsa_cli.auditing.cores import usable_cores
from lsa_cli.auditing.image_size import image_size
from lsa_cli.auditing.rebuilding import channels_of
from lsa_cli.auditing.rebuilt import IN_PYTHON
from lsa_cli.data import LabelledData, from_object, open_data, runs_user_code
from lsa_cli.errors import ConvertibleError, LsaError, UsageError
from lsa_cli.models.checkpoint import Checkpoint, Description
from lsa_cli.models.loading import Loaded
from lsa_cli.settings import AuditSettings


def open_data_for(
    target: Any, settings: AuditSettings, origin: dict[str, str], description: Description | None,
    checkpoint: Checkpoint | None, loaded: Loaded | None, data: Any,
) -> LabelledData:  # fmt: skip
    """The data of the settings, of the channels and the size that the network takes. loaded: None where it is not known yet."""
    shape = tuple(description.input_shape) if description is not None else ()
    size = image_size(target, settings, description, loaded)
    spec = data if data is not None else settings.data
    if spec is None:
        raise UsageError(
            "no data: give images with labels as --data imagefolder:DIR, npz:FILE, torchvision:NAME?root=DIR or "
            "pkg.mod:factory"
        )
    if isinstance(spec, str):
        by_checkpoint = origin.get("data") == "the checkpoint"
        if by_checkpoint and runs_user_code(spec):
            raise UsageError(
                f"the checkpoint names Python code as its data ({spec}); if you trust it, give it with --data"
            )
        opened = partial(
            open_data, spec, split=settings.split, size=size,
            relative_to=Path(target).parent if by_checkpoint else None, threads=settings.threads or usable_cores(),
        )  # fmt: skip
    else:
        opened = partial(from_object, spec, IN_PYTHON, settings.split or "", size=size)
    if len(shape) == 3:
        return opened(channels=shape[0])
    try:
        return opened(channels=_channels(checkpoint, loaded))
    except ConvertibleError:
        found = _taken_as_they_are(opened, loaded)
        if found is None:
            raise
        return found


def _channels(checkpoint: Checkpoint | None, loaded: Loaded | None) -> int | None:
    """The channels that the first convolution takes; None without one."""
    if loaded is None:
        return channels_of(checkpoint) if checkpoint is not None else None
    first = next((module for module in loaded.body.modules() if isinstance(module, nn.Conv2d)), None)
    return first.in_channels if first is not None else None


def _taken_as_they_are(opened: Callable[..., LabelledData], loaded: Loaded | None) -> LabelledData | None:
    """The data without a conversion, where the network runs on them: it can turn images grey by itself, and the convolution that
    it calls first need not be the first one that it has. None where it does not run."""
    if loaded is None:
        return None
    try:
        found = opened(channels=None)
        weight = next(loaded.body.parameters(), torch.empty(0))
        x = found.read(np.arange(min(2, len(found)))).to(weight.device)
        with undisturbed(loaded.body), torch.no_grad():
            loaded.body(x)
    except (LsaError, RuntimeError, TypeError, ValueError, LookupError):
        return None
    return found
