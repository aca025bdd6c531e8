"""Metrics of a network that an audit measures when asked (`--metrics`), each on a few of its samples and their adversarials."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F

from lsa_cli.attacks.base import undisturbed
from lsa_cli.models.classifier import Classifier
from lsa_cli.registry import Registry
from lsa_cli.report.schema import Metric

if TYPE_CHECKING:
    from lsa_cli.auditing.plan import AuditPlan

SAMPLES = 128  # of the audit's, drawn at random: a metric costs far more than a pass
QUANTILES = (0.5, 0.9, 0.99)

# (plan, x (N, ...), x_adv (N, ...), y (N,)) -> rows for the report. Labels are right for the clean x as they come.
MetricFunction = Callable[["AuditPlan", torch.Tensor, torch.Tensor, torch.Tensor], list[Metric]]
METRICS: Registry[MetricFunction] = Registry("metric")


@METRICS.register("intensity")
def robustified_intensity(plan: "AuditPlan", x: torch.Tensor, x_adv: torch.Tensor, y: torch.Tensor) -> list[Metric]:
    """Largest parameter gradient of one sample under attack over the largest one without (arXiv 2012.13573).

    The paper divides the maximum of an adversarially trained network by that of another, trained without attacks; one
    checkpoint has one set of weights, so both maxima are taken at the same weights here (our choice). Quantiles of the
    norms stand beside the maximum, which hangs on one sample.
    """
    clean = gradient_norms(plan.classifier, x, y)
    perturbed = gradient_norms(plan.classifier, x_adv, y)

    def over(above: float, below: float) -> float | None:
        return float(above / below) if below > 0 and np.isfinite(above / below) else None

    at = {f"{share:g}": over(np.quantile(perturbed, share), np.quantile(clean, share)) for share in QUANTILES}
    return [
        Metric(
            name="intensity", n=len(x), value=over(perturbed.max(), clean.max()), unit="ratio",
            quantiles={"mean": over(perturbed.mean(), clean.mean()), **at},
            meaning="robustified intensity: the largest per-sample gradient of the loss in the weights under attack, over "
            "the largest on clean inputs; the larger, the more the bounds on privacy and generalisation of adversarial "
            "training loosen. Quantiles are ratios of quantiles of the two sets of norms",
        )
    ]  # fmt: skip


def gradient_norms(classifier: Classifier, x: torch.Tensor, y: torch.Tensor) -> np.ndarray:  # (N, ...), (N,) -> (N,)
    """||d CE(f(x_i), y_i) / d theta||_2 over all parameters, in evaluation mode.

    Sample by sample: batched gradients would hold N copies of the network, and cannot look through one that takes
    gradients itself.
    """
    norms = np.empty(len(x))
    with undisturbed(classifier), torch.enable_grad():
        parameters = [parameter.requires_grad_(True) for parameter in classifier.parameters()]
        for row in range(len(x)):
            loss = F.cross_entropy(classifier(x[row : row + 1]), y[row : row + 1])
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
            norms[row] = sum(float(part.double().square().sum()) for part in found if part is not None) ** 0.5
    return norms
