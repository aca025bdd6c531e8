"""What an audit will cost, and the numerics that it runs under."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from lsa_cli import distributed
from lsa_cli.attacks.base import Model, undisturbed
from lsa_cli.attacks.gradient import PGD
from lsa_cli.attacks.losses import cross_entropy
from lsa_cli.attacks.ranked import FAR_LEAST
from lsa_cli.auditing.copies import TRIED, copy_for
from lsa_cli.auditing.evidence.examine import FORWARD, SURVIVORS, probe_passes, probe_size
from lsa_cli.auditing.evidence.probe import finite_gradient
from lsa_cli.auditing.named_attacks import NamedAttack
from lsa_cli.auditing.plan import AuditPlan
from lsa_cli.models.classifier import predicted_class

# Work in units of one forward + input-gradient pass over one sample.
LOOK = 2 * FORWARD  # of an attack in the observation, beside the clean input: adversarial and yardstick
_ATTACKED = 32  # samples of the short attack that tells how many will be robust; it takes _STEPS steps (our choice)
_STEPS = 5
# Of the steps of a cascade in linf, where attacks give up samples far from the boundary. Our choice between 0.24 on a
# ResNet-20 for CIFAR-10 and 0.56 on mnist_cnn_at.pt (`python -m benchmarks.dry_run`).
_TAKEN = 0.45
_REPORTS = 1.0  # seconds for what is no pass: reports and examples
_PROCESS = 2.5  # seconds of the process that --full starts to ask the network again


@dataclass(frozen=True)
class Known:
    """What decides the cost of an audit beside its plan; by default what is assumed before it is measured.

    robust: the share of the samples that attacks do not break. on_copy: the time of a pass of the optimized copy, in passes
    of the network. taken: the share of the steps that attacks of a cascade take on robust samples.
    """

    robust: float = 0.6
    on_copy: float = 1.0
    taken: float = 1.0

    def passes(self, named: NamedAttack) -> float:
        """The cost of an attack of one sample to the end."""
        attack = named.attack
        return attack.passes * (1 - attack.on_copy * (1 - self.on_copy))


ASSUMED = Known()


def total_work(plan: AuditPlan, known: Known = ASSUMED) -> float:
    """Cost in forward and gradient passes over one sample; for progress and estimates."""
    each = clean_passes(plan) + FORWARD + (plan.proof.passes if plan.proof is not None else 0.0)
    each += sum(known.passes(named) + LOOK for named in (*plan.attacks, *plan.noises))
    each += sum(
        len(plan.eps_grid) * (known.passes(named) + FORWARD)
        for named in plan.attacks
        if named.attack.kind != "minimal"  # whose one run gives the whole curve
    )
    return each * len(plan.index) + cascade_work(plan, known) + evidence_work(plan, known)


def evidence_work(plan: AuditPlan, known: Known = ASSUMED) -> float:
    """The part of `total_work` that is the evidence's."""
    count = len(plan.index)
    return probe_passes(probe_size(count), count, known.robust) if plan.budget_attacks else 0.0


def clean_passes(plan: AuditPlan) -> float:
    """Passes over one clean sample: with attacks forward and gradient, otherwise forward."""
    return 1.0 if plan.budget_attacks else FORWARD


def cascade_work(plan: AuditPlan, known: Known = ASSUMED) -> float:
    """The part of `total_work` that is the cascade's."""
    count = len(plan.index)
    survivors = min(known.robust * count, plan.settings.full_on or count)
    at_once = [named for named in plan.cascade if named not in plan.rounds]
    return survivors * known.taken * sum(map(known.passes, at_once)) + rounds_work(plan, known)


def rounds_work(plan: AuditPlan, known: Known = ASSUMED, first: int = 0) -> float:
    """The part of the rounds of the ranked cascade, from the round `first` on."""
    survivors, work = math.ceil(known.robust * len(plan.index)), 0.0
    for named in plan.rounds[first:]:
        assert named.round is not None
        attacked = survivors if plan.settings.patient else min(survivors, named.round.border(survivors) + FAR_LEAST)
        work += attacked * known.taken * known.passes(named)
    return work


@dataclass(frozen=True)
class Speed:
    """Seconds of a pass for one sample, in a full batch and in one of a few samples; and what else decides the cost."""

    each: float
    each_of_few: float
    known: Known


def estimate_seconds(plan: AuditPlan, speed: Speed) -> float:
    """Estimated seconds on this machine: the time of passes, of network and copy, times the work."""
    evidence = evidence_work(plan, speed.known)
    others = total_work(plan, speed.known) - evidence
    fixed = _REPORTS + (_PROCESS if plan.settings.preset == "full" else 0.0)
    return fixed + (speed.each * others + speed.each_of_few * evidence) / distributed.world()


def measure_speed(plan: AuditPlan) -> Speed:
    """From passes over batches of the usual sizes, and a short attack on a few samples that tells how many are robust, which
    decides the work of the cascade and the evidence.
    """
    network, rows = plan.network, plan.index[: plan.batch_size]
    classifier = network.classifier
    x = network.inputs(rows)
    y = torch.from_numpy(network.labels[rows]).to(network.device)
    with numerics(plan.threads), undisturbed(classifier):
        each, each_of_few = (_seconds_each(classifier, x[:size], y[:size]) for size in (len(x), SURVIVORS))
        copy = copy_for(plan, x[:TRIED], y[:TRIED]).model
        on_copy = _seconds_each(copy, x, y) / each if copy is not None else 1.0
        robust = share_robust(plan, x[:_ATTACKED], y[:_ATTACKED])
    gives_up = plan.threat.norm == "linf" and not plan.settings.patient
    return Speed(each, each_of_few, Known(robust, on_copy, _TAKEN if gives_up else 1.0))


def _seconds_each(model: Model, x: torch.Tensor, y: torch.Tensor) -> float:
    """Seconds for one sample of a forward and gradient pass over x (N, ...); the model runs before that."""
    finite_gradient(model, x[:2], y[:2], cross_entropy)
    started = time.monotonic()
    finite_gradient(model, x, y, cross_entropy)[0].sum().item()
    return (time.monotonic() - started) / len(x)


def share_robust(plan: AuditPlan, x: torch.Tensor, y: torch.Tensor) -> float:
    """The share of these samples that the network classifies correctly under a short attack; clean where it cannot run."""
    classifier = plan.network.classifier
    if any(named.attack.uses_gradient for named in plan.budget_attacks):
        x = PGD(plan.threat, steps=_STEPS)(classifier, x, y, goal="break")
    with torch.no_grad():
        return float((predicted_class(classifier(x)) == y).float().mean())


@contextmanager
def numerics(count: int) -> Iterator[None]:
    """Within: `count` threads, and float32 that is float32 (no TF32), on deterministic kernels. Then as before."""
    threads = torch.get_num_threads()
    before = (
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.deterministic,
    )
    try:
        torch.set_num_threads(count)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic = True
        yield
    finally:
        torch.set_num_threads(threads)
        (
            torch.backends.cuda.matmul.allow_tf32,
            torch.backends.cudnn.allow_tf32,
            torch.backends.cudnn.deterministic,
        ) = before
