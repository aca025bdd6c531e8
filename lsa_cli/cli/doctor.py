"""`lsa doctor`: check the machine and the installation, and measure their speed."""

import os
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lsa_cli._version import __version__
from lsa_cli.cli.console import emit
from lsa_cli.errors import UsageError
from lsa_cli.wording import plural

# What each optional package is for; an audit of a common checkpoint needs none of them.
OPTIONAL = {
    "timm": "--arch timm:NAME",
    "datasets": "--data hf:NAME",
    "matplotlib": "lsa plot",
}
_ENOUGH_DISK = 1 << 30


def doctor() -> None:
    """Show versions, devices, bfloat16 and threads, and measure what makes audits fast on this machine.

    Exit 0 if an audit can run, 2 if there is a problem to fix first.
    """
    try:
        import torch
        import torchvision
    except (ImportError, RuntimeError, OSError) as error:
        raise UsageError(
            f"torch and torchvision do not load together ({error}); install both in one command from one index, for "
            "example: pip install torch torchvision"
        ) from error
    from lsa_cli.auditing.cores import busy_in_words, free_cores, others_load, usable_cores

    lines = [("lsa", f"{__version__}, Python {platform.python_version()}, {platform.platform()}")]
    lines.append(("torch", f"{torch.__version__}, torchvision {torchvision.__version__}"))
    lines += [(name, _version(name) or f"not installed: no {what}") for name, what in OPTIONAL.items()]
    cores, load = usable_cores(), others_load()
    threads = free_cores(load)  # of an audit
    usable = f"{cores} usable of {plural(os.cpu_count() or 1, 'core')}"
    lines.append(("cpu", f"{usable}, {torch.backends.cpu.get_cpu_capability()}, load of others {load:.1f}"))
    advice: list[str] = []
    one, several = _speed(torch, "cpu", 1), _speed(torch, "cpu", threads)
    timed = f", {several:.1f} ms with {threads}" if threads > 1 else ""
    lines.append(("threads", f"an audit takes {threads} now; {one:.1f} ms a step with 1{timed}"))
    if threads < cores:
        advice.append(f"slow: {busy_in_words(load)}, so an audit takes {plural(threads, 'thread')}")
    if several > one:
        advice.append(f"slow: {plural(threads, 'thread')} are no faster than one now; give --threads 1")
    elif threads > 1:
        advice.append(f"fast: {plural(threads, 'thread')}, {one / several:.1f} times one")
    single, half = min(one, several), _speed(torch, "cpu", threads if several < one else 1, torch.bfloat16)
    lines.append(("bfloat16", f"cpu: {half:.1f} ms a step, float32 {single:.1f} ms"))
    advice.append(_about_half(torch, "cpu", half, single))
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            advice.append(_cuda(torch, number, lines, single))
    else:
        lines.append(("cuda", f"none that this torch ({torch.version.cuda or 'a CPU build'}) can use"))
        advice.append("slow: without CUDA, --full and large networks take long; --quick, -n and --gate-only help")
    problems = list(_folders(lines))
    width = max(len(name) for name, _ in lines)
    emit("".join(f"{name:{width}}  {text}\n" for name, text in lines) + "\n")
    emit("".join(f"{line}\n" for line in [*advice, *(f"fix: {problem}" for problem in problems)]))
    if problems:
        raise UsageError(problems[0])


def _version(name: str) -> str | None:
    import importlib.metadata
    import importlib.util

    try:
        return importlib.metadata.version(name) if importlib.util.find_spec(name) is not None else None
    except importlib.metadata.PackageNotFoundError:
        return None


def _speed(torch: Any, device: str, threads: int, dtype: Any = None) -> float:
    """Milliseconds of one step of an attack: forward and input gradient of a small convolutional network, median of 5."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        body = torch.nn.Sequential(
            torch.nn.Conv2d(16, 32, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(32, 32, 3, padding=1)
        ).to(device, dtype)
        x = torch.rand(16, 16, 24, 24, device=device, dtype=dtype, requires_grad=True)
        times = []
        for _ in range(6):
            started = time.perf_counter()
            torch.autograd.grad(body(x).float().square().sum(), x)
            if device != "cpu":
                torch.cuda.synchronize(device)
            times.append(1000 * (time.perf_counter() - started))
        return float(sorted(times[1:])[2])
    finally:
        torch.set_num_threads(before)


def _about_half(torch: Any, device: str, half: float, single: float) -> str:
    """The gain by bfloat16, and where it is used: audits choose it by the device, never by a timing."""
    from lsa_cli.models.precision import copy_precision

    used = str(copy_precision(torch.device(device))).removeprefix("torch.")
    audits = f"an audit attacks a copy of the network in {used} (--no-fast: the network), and verdicts are float32"
    if half < 0.8 * single:
        return f"fast: bfloat16 on {device}, {single / half:.1f} times float32, which lsa harden uses; {audits}"
    return f"slow: bfloat16 on {device} is no faster than float32; {audits}"


def _cuda(torch: Any, number: int, lines: list[tuple[str, str]], cpu: float) -> str:
    device = f"cuda:{number}"
    found = torch.cuda.get_device_properties(number)
    what = f"{found.name}, {found.total_memory / 2**30:.0f} GiB, capability {found.major}.{found.minor}"
    try:
        single, half = _speed(torch, device, 1), _speed(torch, device, 1, torch.bfloat16)
    except RuntimeError as error:
        lines.append((device, f"{what}, which does not run: {str(error).splitlines()[0]}"))
        return f"slow: {device} does not run here; give --device cpu"
    lines.append((device, f"{what}, {single:.2f} ms a step, bfloat16 {half:.2f} ms"))
    return f"fast: {device}, {cpu / single:.0f} times this CPU; {_about_half(torch, device, half, single)}"


def _folders(lines: list[tuple[str, str]]) -> Any:
    """Add the folders that are written to; yield a sentence for each problem."""
    for what, folder in (("this folder", Path.cwd()), ("temporary files", Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(folder).free
        lines.append((what, f"{folder}, {free / 2**30:.0f} GiB free"))
        if not os.access(folder, os.W_OK):
            yield f"{folder} is not writable; change to another folder, or give --json FILE"
        elif free < _ENOUGH_DISK:
            yield f"{folder} has less than 1 GiB free"
    lines.append(("stdout", f"{sys.stdout.encoding}, {'a terminal' if sys.stdout.isatty() else 'no terminal'}"))
