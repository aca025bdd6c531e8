"""What an audit will cost, and the numerics that it runs under."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lsa_cli import distributed
from lsa_cli.attacks.base import input_gradient, undisturbed
from lsa_cli.attacks.losses import cross_entropy
from lsa_cli.auditing.evidence.examine import FORWARD, probe_passes, probe_size
from lsa_cli.auditing.plan import AuditPlan
from lsa_cli.data import check_inputs

# Work in units of one forward + input-gradient pass over one sample.
LOOK = 2 * FORWARD  # of an attack in the observation, beside the clean input: adversarial and yardstick
_USUAL_SURVIVORS = 0.6  # expected share of samples that a cascade runs on, for progress and estimates


def total_work(plan: AuditPlan) -> float:
    """Cost in forward and gradient passes over one sample; for progress and estimates."""
    attacked = bool(plan.budget_attacks)
    each = clean_passes(plan) + FORWARD + sum(named.attack.passes + LOOK for named in (*plan.attacks, *plan.noises))
    each += sum(
        len(plan.eps_grid) * (named.attack.passes + FORWARD)
        for named in plan.attacks
        if named.attack.kind != "minimal"  # whose one run gives the whole curve
    )
    count = len(plan.index)
    return each * count + cascade_work(plan) + attacked * probe_passes(probe_size(count))


def clean_passes(plan: AuditPlan) -> float:
    """Passes over one clean sample: with attacks forward and gradient, otherwise forward."""
    return 1.0 if plan.budget_attacks else FORWARD


def cascade_work(plan: AuditPlan) -> float:
    """The part of `total_work` that is the cascade's."""
    count = len(plan.index)
    survivors = min(count, plan.settings.full_on or count) * _USUAL_SURVIVORS
    return survivors * sum(named.attack.passes for named in plan.cascade)


def estimate_seconds(plan: AuditPlan) -> float:
    """Estimated seconds on this machine: the time of one gradient pass over one batch, times the work."""
    rows = plan.index[: plan.batch_size]
    x = check_inputs(plan.network.data.read(rows), rows, plan.network.bounds, plan.network.data.spec).to(
        plan.network.device
    )
    y = torch.from_numpy(plan.network.labels[rows]).to(plan.network.device)
    with numerics(plan), undisturbed(plan.network.classifier):
        input_gradient(plan.network.classifier, x[:2], y[:2], cross_entropy)  # warm up
        started = time.monotonic()
        input_gradient(plan.network.classifier, x, y, cross_entropy)[0].sum().item()
        return (time.monotonic() - started) / len(rows) * total_work(plan) / distributed.world()


@contextmanager
def numerics(plan: AuditPlan) -> Iterator[None]:
    """Within: the plan's threads, and float32 that is float32 (no TF32), on deterministic kernels. Then as before."""
    threads = torch.get_num_threads()
    before = (
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.deterministic,
    )
    try:
        torch.set_num_threads(plan.threads)
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
