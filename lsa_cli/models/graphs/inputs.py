"""What an ONNX graph takes, and how images get there."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Input:
    """shape: with the size of a batch first; 0 where any size will do. dtype: of the numbers."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def batch(self) -> int | None:
        """The fixed size of a batch; None where any will do."""
        return self.shape[0] or None

    @property
    def has_channels_last(self) -> bool:
        return len(self.shape) == 4 and self.shape[3] in (1, 3) and self.shape[1] not in (1, 3)

    @property
    def images(self) -> tuple[int, ...]:
        """The sizes (C, H, W) of images, 0 where any will do; () where the graph takes no images."""
        if len(self.shape) != 4:
            return ()
        _, first, second, third = self.shape
        return (third, first, second) if self.has_channels_last else (first, second, third)

    def arrange(self, x: torch.Tensor) -> torch.Tensor:
        """Images (N, C, H, W) as the graph takes them: with channels last, as vectors, or grey without channels."""
        if self.has_channels_last and x.ndim == 4:
            return x.permute(0, 2, 3, 1)
        if len(self.shape) == 2 and x.ndim > 2:
            return x.flatten(1)
        if len(self.shape) == 3 and x.ndim == 4 and x.shape[1] == 1:
            return x[:, 0]
        return x

    @property
    def arrangement(self) -> str | None:
        """What `arrange` does, for the report."""
        if self.has_channels_last:
            return "images are given with their channels last, as the ONNX graph takes them"
        return "images are flattened, as the ONNX graph takes vectors" if len(self.shape) == 2 else None
