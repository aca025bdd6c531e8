"""Which network the attacks of an audit run on: a fast twin, where one exists and attacks on it are as strong."""

import numpy as np
import torch
from torch import nn

from lsa_cli.attacks.base import undisturbed
from lsa_cli.attacks.gradient import PGD
from lsa_cli.attacks.losses import margin
from lsa_cli.auditing.evidence import without_gradient
from lsa_cli.auditing.plan import AuditPlan
from lsa_cli.models.precision import Twin, make_twin, original

PROBE_STEPS = 10
_TRIED = 8  # samples on which logits are compared
WEAKER = 0.002  # of the probe's samples: what the twin's attack may leave whole beyond the original's


def probe_size(count: int) -> int:
    """Samples to try a twin on: a thirtieth, so that the trial costs little beside the audit."""
    return int(np.clip(count // 30, 8, 64))


def choose_twin(plan: AuditPlan, x: torch.Tensor, y: torch.Tensor, index: torch.Tensor, size: int) -> Twin:
    """What to attack, tried on the samples x (N, ...) with labels y (N,) and places `index` (N,), `size` at once.

    The twin is dropped where PGD on it leaves more samples whole than PGD on the network itself, both judged by the
    network itself. Nothing is timed: the same audit always makes the same choice.
    """
    tried = min(_TRIED, size)
    twin = make_twin(plan.classifier, x[:tried])
    if twin.is_original:
        return twin
    if without_gradient(plan.classifier, x[:tried], y[:tried]).all():
        return original(plan.classifier, "it has no input gradient to try a copy with")
    whole = [_left_whole(plan, model, x, y, index, size) for model in (twin.model, plan.classifier)]
    if whole[0] - whole[1] > WEAKER * len(x):
        why = f"attacks on {twin.described} are weaker, they left {whole[0]} of {len(x)} samples whole, not {whole[1]}"
        return original(plan.classifier, why)
    return twin


def _left_whole(
    plan: AuditPlan, model: nn.Module, x: torch.Tensor, y: torch.Tensor, index: torch.Tensor, size: int
) -> int:  # fmt: skip
    """Samples that a short PGD on `model` leaves whole, as the network itself sees them."""
    attack, count = PGD(plan.threat, PROBE_STEPS), 0
    for batch in zip(*(tensor.split(size) for tensor in (x, y, index)), strict=True):
        x_adv = attack(model, batch[0], batch[1], index=batch[2], seed=plan.seed, goal="break")
        with torch.no_grad(), undisturbed(plan.classifier):
            count += int((margin(plan.classifier(x_adv), batch[1]) <= 0).sum())
    return count
