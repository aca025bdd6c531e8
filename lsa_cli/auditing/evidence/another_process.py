"""Does the same file give the same outputs in another process, which was asked nothing before?

A network can keep what it was asked in globals of its code, where no copy of it is without them. A new process has them as
they are when the file is loaded.
"""

import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lsa_cli.auditing.evidence.decision import Checked, doubt
from lsa_cli.auditing.evidence.network import OTHER_BATCH, largest, relative_difference
from lsa_cli.auditing.evidence.probe import Probe
from lsa_cli.auditing.evidence.repeatability import SAMPLES, Beginning, ask, moved
from lsa_cli.auditing.network import Network, build_network
from lsa_cli.models.classifier import READ_BY, Classifier, normalization_of
from lsa_cli.settings import AuditSettings

SECONDS = 120  # in which the other process must answer (our choice); it needs 3 to 5 for a small network
_BUILT_BY = ("plugin", "weights", "arch", "arch_args", "trust_code", "noise_off", "returns")
_TASK, _ASKED, _ANSWERS = "task.json", "asked.npy", "answers.npy"


@dataclass(frozen=True)
class Source:
    """What loads a network again in another process.

    file: its path. settings: those that build the network. normalization, reads: what the classifier around it has.
    """

    file: str
    settings: Mapping[str, Any]
    normalization: Any
    reads: Mapping[str, Any]

    @classmethod
    def of(cls, network: Network) -> "Source | None":
        """None for a network in memory, and one that cannot be put together without data."""
        if network.checkpoint is None:
            return None
        settings = {name: getattr(network.settings, name) for name in _BUILT_BY}
        settings["device"] = str(network.device)
        reads = {name: getattr(network.classifier, name) for name in READ_BY}
        return cls(str(network.checkpoint.path), settings, normalization_of(network.classifier), reads)


def another_process(probe: Probe, beginning: Beginning, source: Source | None) -> Checked:
    """Are the outputs those of the same file in a new process?

    Asked are inputs at the boundary of the budget of some samples, and then these samples. The tolerance is 1% of the range
    of the logits, as for `history`, and one input is enough. Where the network is in memory, or the other process
    fails or takes longer than two minutes, nothing is compared, and the check says so.
    """
    few = probe.first(SAMPLES)
    x = torch.cat([moved(dataclasses.replace(few, model=beginning.fresh(probe.model))), few.x])
    then = _asked_again(source, x, probe.batch_size) if source is not None else None
    if then is None:
        why = "the network is in memory" if source is None else "it did not load and answer there within two minutes"
        return Checked("another process", 0, {}, said=f"nothing was asked again in another process: {why}")
    now = ask(probe.model, x, probe.batch_size)
    apart = relative_difference(then.to(now), now)
    differ, changed = int((apart > OTHER_BATCH).sum()), int((then.argmax(1) != now.argmax(1).cpu()).sum())
    finding = doubt(
        "process-dependent",
        f"for {differ} of {len(x)} inputs the outputs are not those of the same file in a new process, which was asked nothing "
        f"before ({largest(apart)}), and {changed} predicted classes change: the network keeps what it was asked in globals "
        "of its code, so that attacks, which ask many similar inputs, find less than there is",
        "audit the network without its memory, or with its memory cleared before each pass",
    )
    saw = {"differ": differ, "classes that change": changed, "largest difference": float(apart.max())}
    return Checked("another process", len(x), saw, finding if differ else None)


def _asked_again(source: Source, x: torch.Tensor, size: int) -> torch.Tensor | None:
    """The logits (N, K) of a new process for images x (N, ...), at most `size` in a pass; None where it gives none."""
    with tempfile.TemporaryDirectory(prefix="lsa-") as folder:
        task = {**dataclasses.asdict(source), "size": size, "threads": torch.get_num_threads()}
        Path(folder, _TASK).write_text(json.dumps(task), encoding="utf-8")
        np.save(Path(folder, _ASKED), x.cpu().numpy())
        code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import answer; answer({folder!r})"
        command = [sys.executable, "-P", "-c", code]
        try:
            subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS, check=True)
            return torch.from_numpy(np.load(Path(folder, _ANSWERS)))
        except (OSError, subprocess.SubprocessError, ValueError):
            return None


def answer(folder: str) -> None:
    """In the new process: load the network of the task, and write its logits."""
    task = json.loads(Path(folder, _TASK).read_text(encoding="utf-8"))
    torch.set_num_threads(task["threads"])
    built = build_network(task["file"], AuditSettings(**task["settings"]))
    if built.loaded is None:  # only data can tell what the network is
        raise SystemExit(1)
    output = task["settings"]["returns"] or "logits"
    classifier = Classifier(built.loaded.body, task["normalization"], None, output, built.loaded.home).to(built.device)
    for name, value in task["reads"].items():
        setattr(classifier, name, value)
    x = torch.from_numpy(np.load(Path(folder, _ASKED))).to(built.device)
    np.save(Path(folder, _ANSWERS), ask(classifier, x, task["size"]).cpu().numpy())
