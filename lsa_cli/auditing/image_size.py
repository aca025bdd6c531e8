"""The size to which images are resized for a network."""

from pathlib import Path
from typing import Any

from lsa_cli.data import ImageSize, square_size, torchvision_size, usual_size
from lsa_cli.models.checkpoint import Description
from lsa_cli.models.loading import Loaded
from lsa_cli.settings import AuditSettings


def image_size(
    target: Any, settings: AuditSettings, description: Description | None, loaded: Loaded | None
) -> ImageSize | None:
    """The user's, else the checkpoint's, the ONNX graph's, or that of torchvision's own weights; None: native."""
    if settings.input_size is not None:
        return None if settings.input_size == "native" else square_size(int(settings.input_size))
    if description is not None and len(description.input_shape) == 3:
        _, height, width = description.input_shape
        return usual_size(height, width, "the checkpoint")
    if loaded is None:
        return None
    if len(loaded.image_shape) == 3:
        _, height, width = loaded.image_shape
        return usual_size(height, width, "the ONNX graph")
    source, _, name = loaded.arch.partition(":")
    return torchvision_size(name, Path(target).name) if source == "torchvision" else None
