"""The losses that attacks increase: (N, K) logits and (N,) labels -> (N,). Larger is worse for the network."""

from collections.abc import Callable

import torch

from lsa_cli.registry import Registry

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
LOSSES: Registry[Loss] = Registry("loss")
DLR_CLASSES = 4  # with fewer, the targeted DLR is no ratio
SMALL, USUAL = 2.0, 20.0  # differences of the largest and the smallest logit
LARGE = 50.0  # of the largest and the median logit; 40 on 13 usual networks


@LOSSES.register("ce")
def cross_entropy(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The log-odds d against the true class, which attacks use in place of the cross-entropy.

    d is the logsumexp of the wrong logits minus the true one, and the cross-entropy is log(1 + exp(d)): an increasing
    function of d, so that its gradient has the same direction and steps of fixed length are the same. When float32 rounds
    the true probability to 1, the gradient of the cross-entropy vanishes, which stops textbook PGD on confident networks;
    the gradient of d does not vanish. For logits that are nearly equal or far apart see `_scale`.
    """
    return _log_odds(logits, y, _scale(logits))


def unscaled_cross_entropy(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The same without a factor for logits of unusual scale: its gradient has the direction of the cross-entropy's."""
    return _log_odds(logits, y, logits.new_ones(len(logits)))


def _scale(logits: torch.Tensor) -> torch.Tensor:  # (N, K) -> (N,)
    """1, or the factor by which the log-odds enlarge logits that are nearly equal, and reduce those that are far apart.

    Among nearly equal logits all wrong classes count alike, and an attack that increases all of them leaves up to 20 points
    more samples robust. Among logits that are far apart only the nearest class counts, and an attack that cannot leave it
    leaves up to 8 points more. Where the largest logit is less than SMALL above the smallest one, the factor makes that USUAL;
    where it is more than LARGE above the median one, the factor makes this USUAL (our choices). A few logits far below the
    others do not change the median. The factor is a constant for the gradient.
    """
    logits = logits.detach()
    top = logits.amax(1)
    spread, above_median = top - logits.amin(1), top - logits.median(1).values
    scale = torch.where(spread < SMALL, USUAL / spread.clamp_min(1e-30), 1.0)
    return torch.where((above_median > LARGE) & above_median.isfinite(), USUAL / above_median, scale)


def _log_odds(logits: torch.Tensor, y: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:  # (N, K), (N,), (N,) -> (N,)
    """logsumexp(scale * wrong logits) / scale - true logit, which keeps the unit of the logits."""
    true, wrong = _split(logits, y)
    return (scale[:, None] * wrong).logsumexp(1) / scale - true


@LOSSES.register("margin")
def margin(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Largest wrong logit minus the true one (Carlini & Wagner, arXiv 1608.04644): positive where misclassified."""
    true, wrong = _split(logits, y)
    return wrong.amax(1) - true


def decision_margin(logits: torch.Tensor, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The margin (N,); infinite, so misclassified, where the logits of a finite input x (N, ...) name no class.

    Logits name no class where one is NaN, or where several are the largest and infinite.
    """
    value = margin(logits, y)
    return torch.where(value.isnan() & x.flatten(1).sum(1).isfinite(), torch.inf, value)


@LOSSES.register("dlr")
def dlr(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Difference of logits ratio (arXiv 2003.01690, eq. 6): the margin divided by the first minus the third logit.

    It does not depend on the shift and the scale of the logits. With two classes there is no third logit, and every ratio of
    differences is constant: it is the margin itself (our choice).
    """
    if logits.shape[1] < 3:
        return margin(logits, y)
    top = logits.topk(3, dim=1).values
    return margin(logits, y) / _positive(top[:, 0] - top[:, 2])


def targeted_dlr(logits: torch.Tensor, y: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """DLR towards the classes `target` (N,) (arXiv 2003.01690, eq. 7): positive where the target beats y.

    The difference is divided by the first logit minus the mean of the third and fourth. With fewer than four classes it is
    not divided (our choice): divided by the first minus the third, the last of three classes would always give -1.
    """
    difference = (logits.gather(1, target[:, None]) - logits.gather(1, y[:, None])).squeeze(1)
    if logits.shape[1] < DLR_CLASSES:
        return difference
    top = logits.topk(4, dim=1).values
    return difference / _positive(top[:, 0] - top[:, 2:].mean(1))


def _positive(size: torch.Tensor) -> torch.Tensor:
    """A difference of sorted logits, at least 1e-12, so that it can be a divisor where they are equal."""
    return size.clamp_min(1e-12)


def tempered(temperature: float) -> Loss:
    """Cross-entropy of logits / temperature (Temperature-PGD, arXiv 2105.14240).

    The formula is our reading, since only the idea of the paper could be read. The temperature sets the weights of the wrong
    classes: towards 0 only the nearest one counts (the margin), towards infinity all count alike. (Steps of fixed length
    cancel the global factor 1/temperature.) Log-odds also work at small temperatures, where probabilities underflow.
    """

    def loss(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return _log_odds(logits / temperature, y, _scale(logits))

    return loss


def _split(logits: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The true class's logit (N,), and the logits (N, K) with minus infinity in its place."""
    true = logits.gather(1, y[:, None]).squeeze(1)
    return true, logits.scatter(1, y[:, None], -torch.inf)
