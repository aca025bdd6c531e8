"""Refuse hostile pickles, which name functions of the system, and releases of torch whose loading is unsafe."""

import re

from lsa_cli.errors import CheckpointError, UsageError
from lsa_cli.models.checkpoint import Checkpoint

_SAFEST_TORCH = (2, 10)
# Modules that hostile pickles use and checkpoints do not. Safety does not depend on this list: nothing is called.
_SYSTEM = {
    "os", "posix", "nt", "subprocess", "sys", "shutil", "socket", "ctypes", "importlib", "imp", "runpy", "pty", "code",
    "codeop", "webbrowser", "commands", "popen2", "pdb", "bdb", "timeit", "profile", "cProfile", "trace", "pip", "pydoc",
    "marshal", "pickle", "_pickle", "cPickle", "dill", "asyncio", "http", "urllib", "urllib2", "requests", "httpx", "ftplib",
    "smtplib", "tempfile", "linecache", "platform", "pkgutil", "ensurepip", "venv", "idlelib", "lib2to3", "nturl2path",
}  # fmt: skip
_LOADERS = (
    "torch.load", "torch.hub.", "torch.jit.load", "torch.package.", "torch.serialization.load", "torch.ops.load_library",
    "torch.utils.cpp_extension.", "torch._inductor.", "torch.distributed.elastic.", "numpy.load", "numpy.f2py.",
    "types.FunctionType", "types.CodeType", "operator.attrgetter", "operator.methodcaller",
)  # fmt: skip
_BUILTINS = {
    "eval", "exec", "execfile", "compile", "__import__", "open", "input", "breakpoint", "apply", "file", "globals",
}  # fmt: skip
_WAYS_ROUND = {
    "os", "sys", "subprocess", "__globals__", "__builtins__", "__subclasses__", "__getattribute__", "__reduce__",
}  # fmt: skip


def refuse_hostile(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError for a file that names functions of the system. None would run, but its weights are suspect."""
    hostile = [name for name in checkpoint.globals if is_hostile(name)]
    if hostile:
        raise CheckpointError(
            f"{checkpoint.path} would call {', '.join(hostile[:3])} when it is unpickled, which no checkpoint needs: it "
            "is refused as hostile; get the weights from a source that you trust"
        )


def is_hostile(name: str) -> bool:
    """Whether a global in a pickle gives access to the system, to other code or to other files."""
    root, *rest = name.split(".")
    if root in ("builtins", "__builtin__") and not _BUILTINS.isdisjoint(rest):
        return True
    return root in _SYSTEM or name.startswith(_LOADERS) or not _WAYS_ROUND.isdisjoint(rest)


def refuse_unsafe_torch(version: str) -> None:
    """Raise UsageError for releases of torch in which weights_only=True is not safe (CVE-2025-32434, CVE-2026-24747)."""
    if tuple(int(number) for number in re.findall(r"\d+", version)[:2]) < _SAFEST_TORCH:
        raise UsageError(
            f"torch {version} has known ways around its safe loading of checkpoints; install torch "
            f"{_SAFEST_TORCH[0]}.{_SAFEST_TORCH[1]} or later"
        )
