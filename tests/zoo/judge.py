"""An audit of a network of the zoo beside the truth: was a number that is too high found out, and was an honest one believed?"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from lsa_cli import audit
from lsa_cli.errors import LsaError
from tests.zoo.base import Entry
from tests.zoo.truth import survivors

TOO_HIGH = 0.1  # of the samples


@dataclass(frozen=True)
class Row:
    """clean, truth, reported: shares of the samples; truth: what the attack written for the network leaves.

    verdict: that of the evidence, or "refused" with the reason as its only finding.
    """

    entry: Entry
    is_honest: bool
    clean: float
    truth: float
    reported: float
    verdict: str
    findings: tuple[str, ...]

    @property
    def outcome(self) -> str:
        doubted, too_high = self.verdict != "trusted", self.reported > self.truth + TOO_HIGH
        if self.is_honest and doubted:
            return "doubted wrongly"
        if too_high:
            return "caught" if doubted else "missed"
        return "trusted" if self.is_honest else "right number"


def judged(entry: Entry, is_honest: bool, n: int, seed: int = 0) -> Row:
    """The row of a network, audited with the default attacks on n samples."""
    x, y = entry.samples(n)
    truth = float(survivors(entry, entry.network(), x, y, seed).float().mean())
    options = {"eps": entry.eps, "norm": entry.norm, "noise": "none", "threads": 1, "seed": seed}
    with tempfile.TemporaryDirectory() as folder:
        target = _target(entry, x, Path(folder))
        options |= {"trust_code": True, "normalize": "none"} if isinstance(target, Path) else {}
        try:
            report = audit(target, data=(x.numpy(), y.numpy()), **options)
        except LsaError as error:
            return Row(entry, is_honest, 0.0, truth, 1.0, "refused", (str(error),))
    verdict, evidence = report.verdict, report.evidence
    found = tuple(finding.code for finding in evidence.findings)
    return Row(entry, is_honest, verdict.clean.value, truth, verdict.robust.value, evidence.verdict, found)


def _target(entry: Entry, x: torch.Tensor, folder: Path) -> Path | torch.nn.Module:
    """What is audited: the network itself, or the file that the entry asks for."""
    network = entry.network()
    if entry.saved == "script":
        torch.jit.save(torch.jit.script(network), folder / "network.pt")
        return folder / "network.pt"
    if entry.saved == "trace":
        torch.jit.save(torch.jit.trace(network, x[:2]), folder / "network.pt")
        return folder / "network.pt"
    if entry.saved == "pt2":
        program = torch.export.export(network, (x[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
        torch.export.save(program, folder / "network.pt2")
        return folder / "network.pt2"
    return network
