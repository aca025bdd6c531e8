"""Random networks: the same question is asked several times, and the report has mean, spread and worst of the answers."""

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

DRAWS = 10  # evaluations of each input of a random network (our choice)


@contextmanager
def draw(seed: int, index: torch.Tensor, number: int) -> Iterator[None]:
    """Within: the chance of draw `number` for the samples `index` (N,).

    Learnt noise then belongs to a sample. Dropout and the like use torch's own generator: seeded, so that the same audit
    finds the same, but their numbers hang on the batch.
    """
    devices = [index.device] if index.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), per_sample(seed, index, f"draw {number}"):
        torch.manual_seed((seed * 1_000_003 + number) * 1_000_003 + int(index[0]))
        yield


def spread(wrong: np.ndarray) -> Draws:  # (N, R) bool
    """Of R draws: accuracy in each, its mean and standard deviation; worst: a sample counts if right in all of them."""
    accuracies = (~wrong).mean(0)
    return Draws(
        n=wrong.shape[1],
        mean=float(accuracies.mean()),
        sd=float(accuracies.std(ddof=1)),
        worst=rate(np.logical_not(wrong).all(1)),
    )


def mean_rate(wrong: np.ndarray) -> Rate:
    """The mean accuracy over draws as a share of samples; the interval is that of so many samples, not of draws."""
    n = len(wrong)
    count = round(float((~wrong).mean() * n))
    low, high = wilson(count, n) or (None, None)
    return Rate(count=count, n=n, value=float((~wrong).mean()), low=low, high=high)


def verdict_over_draws(verdict: Verdict, clean: np.ndarray, fooled: np.ndarray) -> Verdict:
    """The verdict with means in place of single throws. clean: wrong without an attack; fooled: by any attack; (N, R)."""
    changes: dict[str, Any] = {"clean": mean_rate(clean), "clean_draws": spread(clean)}
    if verdict.robust is not None:
        wrong = clean | fooled
        draws, robust = spread(wrong), mean_rate(wrong)
        said = (
            f"A random network: in the mean over {draws.n} evaluations {draws.mean:.1%} of {robust.n} samples are right and "
            f"stay right under the worst of {', '.join(verdict.attacks)}; {draws.worst.count} are in every one of them. "
            f"In the first one: {verdict.statement}"
        )
        changes |= {"robust": robust, "draws": draws, "statement": said}
    return verdict.model_copy(update=changes)


def random_network(eot: bool) -> Warning:
    """eot: an attack climbs the mean of several passes."""
    mend = (
        "; attacks that have the setting eot climb the mean of so many passes" if eot else
        "; the attacks climbed single passes, and so found too little: attack its mean, as --attack pgd or "
        "--attack autoattack do unless told otherwise"
    )  # fmt: skip
    return Warning(
        code="random-network",
        message=f"the network answers by chance, so accuracies are means over {DRAWS} evaluations of each input (with the "
        "spread, and as worst the share of samples right in every one); classes, confusion, cascade, curves and single "
        f"samples are those of the first{mend}",
    )
