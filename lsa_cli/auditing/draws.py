"""Stochastic networks: each input is evaluated several times, and the report has the mean, spread and worst of the results."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from lsa_cli.attacks.randomness import per_sample
from lsa_cli.auditing.class_diagnosis import rate
from lsa_cli.report.row import Draws, Rate
from lsa_cli.report.schema import Verdict, Warning
from lsa_cli.stats import wilson

DRAWS = 10  # evaluations of each input by a stochastic network (our choice)


@contextmanager
def draw(seed: int, index: torch.Tensor, number: int) -> Iterator[None]:
    """Within: the random numbers of draw `number` for the samples `index` (N,).

    Learnt noise depends on the sample only. Dropout and the like use torch's own generator: it is seeded, so that an audit
    is reproducible, but its numbers depend on the batch.
    """
    devices = [index.device] if index.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), per_sample(seed, index, f"draw {number}"):
        torch.manual_seed((seed * 1_000_003 + number) * 1_000_003 + int(index[0]))
        yield


def spread(wrong: np.ndarray) -> Draws:  # (N, R) bool
    """Mean and standard deviation of the accuracies of R draws; worst: the samples that are correct in all draws."""
    accuracies = (~wrong).mean(0)
    return Draws(
        n=wrong.shape[1],
        mean=float(accuracies.mean()),
        sd=float(accuracies.std(ddof=1)),
        worst=rate(np.logical_not(wrong.any(1))),
    )


def mean_rate(wrong: np.ndarray) -> Rate:
    """The mean accuracy over draws, with the interval for the number of samples, not of draws."""
    n, value = len(wrong), float((~wrong).mean())
    count = round(value * n)
    low, high = wilson(count, n) or (None, None)
    return Rate(count=count, n=n, value=value, low=low, high=high)


def verdict_over_draws(verdict: Verdict, clean: np.ndarray, fooled: np.ndarray) -> Verdict:
    """The verdict with means over R draws. (N, R): clean, wrong without an attack; fooled, broken by any attack."""
    changes: dict[str, Any] = {"clean": mean_rate(clean), "clean_draws": spread(clean)}
    if verdict.robust is not None:
        wrong = clean | fooled
        draws, robust = spread(wrong), mean_rate(wrong)
        said = (
            f"The network is stochastic: in the mean over {draws.n} evaluations {draws.mean:.1%} of {robust.n} samples are "
            f"classified correctly, also under the worst of {', '.join(verdict.attacks)}; {draws.worst.count} are in every "
            f"evaluation. In the first one: {verdict.statement}"
        )
        changes |= {"robust": robust, "draws": draws, "statement": said}
    return verdict.model_copy(update=changes)


def stochastic_network(eot: bool) -> Warning:
    """eot: an attack averages gradients over several passes."""
    advice = (
        "attacks with the setting eot average gradients over so many passes" if eot else
        "the attacks use the gradient of a single pass and find too little: set eot, or use the defaults of --attack pgd or "
        "--attack autoattack, which average over several passes"
    )  # fmt: skip
    return Warning(
        code="random-network",
        message=f"the network is stochastic, so accuracies are means over {DRAWS} evaluations of each input (with their "
        "spread, and as worst the share of samples that are correct in every one); classes, confusion, cascade, curves and "
        f"single samples are those of the first evaluation; {advice}",
    )
