"""What a training will cost: passes and seconds of an epoch, measured on a copy of the network before the first epoch."""

import time
from copy import deepcopy
from dataclasses import dataclass, replace

from lsa_cli import distributed
from lsa_cli.hardening.job import Job
from lsa_cli.hardening.trainer import VALIDATION_STEPS, Training
from lsa_cli.hardening.weights import training_mode

_UPDATES = 4  # of the trial; the first one warms up
_VALIDATION_PASSES = VALIDATION_STEPS + 3  # PGD, FGSM and clean: less, where samples break early


@dataclass(frozen=True)
class EpochCost:
    """passes: forward passes of a sample in one epoch. seconds: of the epoch, with its validation."""

    passes: float
    seconds: float

    def epochs_in(self, seconds: float) -> int:
        """How many epochs fit into this time; at least one."""
        return max(1, int(seconds / self.seconds))


def epoch_cost(job: Job) -> EpochCost:
    """Run some updates, at the strength of the end of the training, on copies of the network and the method.

    Of several ranks the slowest one counts. Methods in phases cost less in early epochs than is said here.
    """
    model, method = deepcopy((job.model, job.method))
    training = Training(replace(job, model=model, method=method), lambda *_: None, lambda *_: None)
    training_mode(training.model)
    ran: list[int] = []
    model.register_forward_hook(lambda module, given, logits: ran.append(len(logits)))
    samples, started = 0, time.perf_counter()
    for number, (batch, count) in enumerate(training.epoch_batches(0, 0)):
        if number == 1:  # the first update has warmed up
            ran.clear()
            samples, started = 0, time.perf_counter()
        training.update(replace(batch, progress=1.0, strength=1.0), count)
        samples += len(batch.x)
        if number + 1 == _UPDATES:
            break
    spent = time.perf_counter() - started
    passes = sum(ran) / samples
    each = max(distributed.gather_objects(spent / samples))
    validation = _VALIDATION_PASSES * len(job.validation) * each / passes
    return EpochCost(passes, each * len(distributed.share(job.train)) + validation)
