"""What says that a device's memory did not hold a batch, and what is said of it."""

import torch

from lsa_cli.errors import RunError


def is_out_of_memory(error: BaseException) -> bool:
    """Of the GPU, of Python, or of torch's allocator on the CPU, which raises a plain RuntimeError."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


def out_of_memory(batch_size: int) -> RunError:
    return RunError(f"out of memory with {batch_size} samples at once; say a smaller --batch-size")
