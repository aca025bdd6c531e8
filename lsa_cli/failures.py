"""Errors of the user's network: distinguished from lsa's own, with the layer and the line in which they occur."""

import re
import traceback
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from lsa_cli.errors import BackwardError, ForwardError, LsaError, summary_of

_HERE, _TORCH = Path(__file__).parent, Path(torch.__file__).parent
# Code of lsa that is a part of the network, or that only forwards to torch.
_OF_NETWORKS = {_HERE / "models" / name for name in ("architectures.py", "surgery.py", "classifier.py")} | {
    _HERE / "models" / "graphs" / name
    for name in ("network.py", "layers.py", "operations.py", "shapes.py", "inputs.py")
}
_FORWARDER = "__torch_function__"
_OF_TYPES = re.compile(r"dtype|Input type|scalar type")
_MISSING = re.compile(r"missing \d+ required (?:positional|keyword-only) arguments?: (.+)")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory is exhausted: of the GPU, of Python, or on the CPU, where torch raises a plain RuntimeError."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


def _is_foreign(error: BaseException) -> bool:
    return not isinstance(error, (KeyboardInterrupt, GeneratorExit, LsaError)) and not is_out_of_memory(error)


@contextmanager
def forward_of(body: nn.Module) -> Iterator[None]:
    """Within: an error in the forward pass of `body` becomes a ForwardError, unless lsa's own hooks raised it."""
    try:
        yield
    except BaseException as error:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        if not _is_foreign(error) or _is_ours(frames):
            raise
        raise ForwardError(
            f"the network's own forward pass fails{_where(error, body)}: {summary_of(error)}{_advice(error, body)}"
        ) from error


@contextmanager
def backward_of_network() -> Iterator[None]:
    """Within: an error in the backward pass of the network becomes a BackwardError."""
    try:
        yield
    except BaseException as error:
        if not _is_foreign(error):
            raise
        raise BackwardError(backward_sentence(error)) from error


def backward_sentence(error: BaseException, where: str = "") -> str:
    """The message for an error in a backward pass."""
    fix = "call checkpoint with use_reentrant=False, or " if "use_reentrant" in str(error) else ""
    return (
        f"the network's own backward pass fails{where}: {summary_of(error)}; {fix}"
        "attack it without gradients (--attack square)"
    )


def _advice(error: BaseException, body: nn.Module) -> str:
    others = {p.dtype for p in body.parameters() if p.is_floating_point()} - {torch.float32}
    if others and isinstance(error, RuntimeError) and _OF_TYPES.search(str(error)):
        kinds = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in others))
        return f"; its weights are {kinds} and lsa's inputs are float32: give model.float()"
    missing = _MISSING.search(str(error)) if isinstance(error, TypeError) else None
    if missing is None:
        return ""
    return f"; lsa calls it with the images alone: give an --arch factory that fills in {missing[1]}"


# ---- where it fails ----------------------------------------------------------------------------------------


def _file(frame: types.FrameType) -> Path:
    return Path(frame.f_code.co_filename)


def _is_ours(frames: list[types.FrameType]) -> bool:
    """Whether the innermost frame outside torch is code of lsa that is no part of the network."""
    outside = [frame for frame in frames if not _file(frame).is_relative_to(_TORCH)]
    inner = [frame for frame in outside if frame.f_code.co_name != _FORWARDER]
    return bool(inner) and _file(inner[-1]).is_relative_to(_HERE) and not _is_network(_file(inner[-1]))


def _is_network(file: Path) -> bool:
    return file in _OF_NETWORKS or file == Path(__file__)


def _where(error: BaseException, body: nn.Module) -> str:
    """The innermost layer that was running, and the line of the user's code."""
    names = {id(module): name for name, module in body.named_modules()}
    layer, line = "", ""
    for frame, number in traceback.walk_tb(error.__traceback__):
        module = frame.f_locals.get("self")
        if names.get(id(module)):
            layer = f" in {names[id(module)]} ({type(module).__name__})"
        if not _file(frame).is_relative_to(_HERE) and not _file(frame).is_relative_to(_TORCH):
            line = f", {_file(frame)} line {number}"
    return layer + line


def try_backward(model: Callable[[torch.Tensor], torch.Tensor], body: nn.Module, x: torch.Tensor) -> None:
    """One backward pass from the logits (N, K) to the images x (N, ...). Raises BackwardError with the line whose
    gradient fails, and nothing where the logits do not depend on the images."""

    def run() -> None:
        leaf = x.detach().requires_grad_(True)
        logits = model(leaf)
        if logits.requires_grad:
            torch.autograd.grad(logits.sum(), leaf, allow_unused=True)

    with torch.enable_grad():
        try:
            with backward_of_network():
                run()
        except BackwardError as error:
            cause = error.__cause__ or error
            raise BackwardError(backward_sentence(cause, _line_of_node(run, body))) from cause


def _line_of_node(run: Callable[[], None], body: nn.Module) -> str:
    """The line of the user's code that created the failing node of the graph, found by torch's anomaly mode."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            with torch.autograd.detect_anomaly(check_nan=False):
                run()
        except Exception:
            pass
    text = next((str(entry.message) for entry in told if "Traceback of forward call" in str(entry.message)), "")
    found = [(Path(file), int(number)) for file, number in re.findall(r'File "(.+?)", line (\d+)', text)]
    found = [(file, number) for file, number in found if not file.is_relative_to(_TORCH) and not _is_lsa(file)]
    if not found:
        return ""
    file, number = found[-1]
    layer = next(
        (f" in {name} ({type(m).__name__})" for name, m in body.named_modules() if name and _runs(m, file, number)), ""
    )
    return f"{layer}, {file} line {number}"


def _is_lsa(file: Path) -> bool:
    return file.is_relative_to(_HERE) and file not in _OF_NETWORKS - {_HERE / "models" / "classifier.py"}


def _runs(module: nn.Module, file: Path, number: int) -> bool:
    code = getattr(type(module).forward, "__code__", None)
    if code is None or Path(code.co_filename) != file:
        return False
    lines = [line for _, _, line in code.co_lines() if line is not None]
    return code.co_firstlineno <= number <= max(lines)
