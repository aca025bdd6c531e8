"""train(): the training loop of every hardening method. A resumed run gives the same bits as an uninterrupted one."""

import itertools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from lsa_cli import distributed
from lsa_cli.attacks.base import undisturbed
from lsa_cli.attacks.gradient import FGSM, PGD
from lsa_cli.data import batches, check_inputs, prefetch
from lsa_cli.errors import RunError, UsageError
from lsa_cli.failures import backward_of_network
from lsa_cli.hardening.augmentation import AUGMENTATIONS
from lsa_cli.hardening.job import Job
from lsa_cli.hardening.methods import Batch
from lsa_cli.hardening.recipes import OPTIMIZERS
from lsa_cli.hardening.schedules import learning_rate, warmed_up
from lsa_cli.hardening.state import read_state, write_state
from lsa_cli.hardening.validation import diagnose, validation_of
from lsa_cli.hardening.watchdog import EpochResult, at_chance, collapse, is_weak, seconds_of_epoch, trouble
from lsa_cli.hardening.weights import Average, copied, training_mode, weights_of
from lsa_cli.models.classifier import predicted_class
from lsa_cli.models.precision import runs_channels_last

_SAVE_EVERY = 120.0  # seconds between two states on disk within an epoch
VALIDATION_STEPS = 10


@dataclass(frozen=True)
class Trained:
    """best, last: state_dicts of the network. history: the result of each epoch. stopped: the reason for early stopping.

    best_epoch: 0 is the network before training. It is the best where no epoch has full strength, where training fails and
    the best epoch is no better than chance, and where a method takes nothing of the training.
    """

    best: dict[str, torch.Tensor]
    last: dict[str, torch.Tensor]
    best_epoch: int
    history: list[EpochResult]
    stopped: str | None


Say = Callable[[str], None]
Progress = Callable[[str, float, float], None]


def train(
    job: Job, progress: Progress, on_epoch: Callable[[EpochResult, float], None],
    on_resume: Callable[[list[EpochResult], bool], None] = lambda history, trains: None,
) -> Trained:  # fmt: skip
    """Train job.model in place.

    The first rank calls on_epoch(result, seconds left) after each epoch, and on_resume(results so far, whether it trains on)
    after a resume.

    The state is saved after every epoch and every two minutes. With job.resume the training continues from there, and on CPU
    gives the same bits as an uninterrupted run. Raises RunError where the loss is not finite in the first epoch.
    """
    return Training(job, progress, on_epoch).run(on_resume)


class Training:
    def __init__(self, job: Job, progress: Progress, on_epoch: Callable[[EpochResult, float], None]) -> None:
        self.job, self.progress, self.on_epoch = job, progress, on_epoch
        self.model, self.method, self.recipe = job.model, job.method, job.recipe
        if runs_channels_last(self.model, self.method.task.input_shape):
            self.model.to(memory_format=torch.channels_last)  # which is faster
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in job.trainable)
        groups = self.method.groups(self.model)
        self.groups = {name: [p for p in group if p.requires_grad] for name, group in groups.items()}
        self.optimizers = {
            name: OPTIMIZERS[self.recipe.optimizer](group, self.recipe) for name, group in self.groups.items() if group
        }
        self.average = None if self.recipe.average == "none" else Average(self.recipe.average, self.model)
        self.size = min(self.recipe.batch_size, len(job.train))
        least = distributed.world() * (2 if normalizes_by_rank(self.model) else 1)
        if distributed.world() > 1 and self.size < least:
            raise UsageError(
                f"--batch-size {self.size} is too small for {distributed.world()} ranks; give at least {least}"
            )
        self.per_epoch = len(job.train) // self.size
        self.total = self.per_epoch * self.recipe.epochs
        self.step = 0
        self.history: list[EpochResult] = []
        self.sums: dict[str, float] = {}
        self.counted: dict[str, int] = {}
        self.spent = 0.0
        self.best = self.untrained = self.weights_to_save()
        self.best_epoch, self.best_score = 0, -1.0
        self.saved = time.monotonic()

    def run(self, on_resume: Callable[[list[EpochResult], bool], None]) -> Trained:
        if self.job.resume:
            self.restore(read_state(self.job.state_file, self.job.identity, self.job.device))
        stopped = trouble(self.history, self.chance) if self.history else None
        if self.job.resume and distributed.rank() == 0:
            on_resume(self.history, self.step < self.total and stopped is None)
        while self.step < self.total and stopped is None:
            self.one_epoch()
            stopped = trouble(self.history, self.chance)
        if self.best_epoch and at_chance(best := self.history[self.best_epoch - 1], self.chance):
            stopped = stopped or collapse(best, self.clean_before(), self.chance)
            if stopped is not None:
                self.best, self.best_epoch = self.untrained, 0  # an epoch at chance is not saved as the best
        self.model.to(memory_format=torch.contiguous_format)
        return Trained(self.best, self.weights_to_save(), self.best_epoch, self.history, stopped)

    def clean_before(self) -> float:
        """Clean accuracy of the network before training, on the held-out samples."""
        own = weights_of(self.model)
        self.model.load_state_dict(self.untrained)
        with undisturbed(self.model), torch.no_grad():
            right = [predicted_class(self.model(batch.x)) == batch.y for batch in validation_of(self.job)]
        self.model.load_state_dict(own)
        return float(torch.cat(right).float().mean())

    @property
    def chance(self) -> float:
        return float(np.bincount(self.job.labels[self.job.validation]).max() / len(self.job.validation))

    # ---- one epoch -------------------------------------------------------------------------------------

    def one_epoch(self) -> None:
        epoch, done = divmod(self.step, self.per_epoch)
        if done == 0:
            self.method.begin_epoch(epoch + 1)
            self.sums, self.counted, self.spent = {}, {}, 0.0
        began = time.monotonic()
        training_mode(self.model)
        for batch, count in self.epoch_batches(epoch, done):
            self.update(batch, count)
            self.step += 1
            self.progress(f"epoch {epoch + 1}/{self.recipe.epochs}", self.step, self.total)
            if time.monotonic() - self.saved > _SAVE_EVERY and self.step % self.per_epoch:
                self.spent += time.monotonic() - began
                began = time.monotonic()
                self.save()
        self.spent += time.monotonic() - began
        self.finish_epoch(epoch + 1)

    def epoch_batches(self, epoch: int, done: int) -> Iterator[tuple[Batch, int]]:
        """This rank's part of each batch that is left in the epoch, and the number of samples of the whole batch.

        A last batch that is not full is left out: BatchNorm cannot train on one sample, and every rank needs a part.
        """
        job, size = self.job, self.size
        order = np.random.default_rng([job.seed, epoch]).permutation(job.train)
        parts = [distributed.share(whole) for whole in batches(order[: self.per_epoch * size], size)][done:]
        for number, (rows, read) in enumerate(prefetch(job.data, np.concatenate(parts), len(parts[0]))):
            at = (epoch * self.per_epoch + done + number + 0.5) / self.total
            index = torch.from_numpy(rows)
            seed = job.seed * 1_000_003 + epoch
            x = check_inputs(read, rows, job.threat.bounds, job.data.spec)
            x = AUGMENTATIONS[self.recipe.augment](x, index, seed)
            y = torch.from_numpy(job.labels[rows])
            strength = warmed_up(at, self.recipe.warmup)
            x, y, index = (tensor.to(job.device) for tensor in (x, y, index))
            yield Batch(x, y, index, seed, at, strength), size

    def update(self, batch: Batch, count: int) -> None:
        """All updates of the method on one batch. Gradients are summed over ranks before each update."""
        recipe = self.recipe
        # Dropout draws from the global generator. It is seeded by step, so that a resumed run draws the same numbers, and by
        # rank, so that the samples of a batch draw different ones.
        torch.manual_seed(self.job.seed * 7_919 + self.step + distributed.rank() * 1_000_000_007)
        rate = recipe.lr * learning_rate(recipe.schedule, batch.progress)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = rate
        steps = self.method.steps(self.model, batch)
        while True:
            with torch.autocast(self.job.device.type, torch.bfloat16, enabled=recipe.amp):
                step = next(steps, None)
            if step is None:
                break
            loss, names = step
            for parameter in itertools.chain.from_iterable(self.groups.values()):
                parameter.grad = None
            with backward_of_network():
                (loss * (len(batch.x) / count)).backward()
            for name in names:
                self.apply(name)
            self.add_losses(loss, len(batch.x))
        if self.average is not None:
            self.average.update(self.model, batch.progress)

    def apply(self, name: str) -> None:
        distributed.sum_gradients(self.groups[name])
        if name in self.optimizers:
            if self.recipe.clip > 0:
                nn.utils.clip_grad_norm_(self.groups[name], self.recipe.clip)
            self.optimizers[name].step()

    def add_losses(self, loss: torch.Tensor, count: int) -> None:
        """Add the losses of one update to the sums for the log."""
        found = {"loss": loss.detach() * count} | {name: part.sum() for name, part in self.method.parts.items()}
        values = torch.stack(
            [value.detach().double() for value in found.values()]
        ).tolist()  # one synchronisation with the device
        for name, value in zip(found, values, strict=True):
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counted[name] = self.counted.get(name, 0) + count
        if not self.history and distributed.anywhere(not math.isfinite(self.sums["loss"])):
            raise RunError(
                f"the loss is not finite at step {self.step + 1}, in the first epoch; use a smaller --lr, a longer "
                "--warmup, --clip 1, or a smaller --gamma"
            )

    # ---- the end of an epoch ---------------------------------------------------------------------------

    def finish_epoch(self, epoch: int) -> None:
        job, recipe = self.job, self.recipe
        means = self.means()
        self.average_statistics()
        fgsm, robust = FGSM(threat=job.threat), PGD(threat=job.threat, steps=VALIDATION_STEPS)
        found = diagnose(job, robust) if self.method.diagnosed else None
        if found is not None:
            self.method.end_epoch(self.model, found[1])
        with self.averaged() as is_averaged:
            if found is None or is_averaged:
                found = diagnose(job, robust)
            clean, under_pgd = found
            _, under_fgsm = diagnose(job, fgsm)
        result = EpochResult(
            epoch, means.pop("loss"), means,
            clean, float(under_fgsm.robust.mean()), float(under_pgd.robust.mean()),
            warmed_up(epoch / recipe.epochs, recipe.warmup), self.rate, round(self.spent, 3),
        )  # fmt: skip
        if epoch < recipe.epochs and is_weak([*self.history, result], self.chance):
            result = replace(result, raised=self.method.strengthen())
        self.history.append(result)
        score = self.method.score(under_pgd)
        full = result.strength == 1 and epoch / recipe.epochs > self.method.begins  # the last epoch always is
        if score > self.best_score and full and math.isfinite(result.loss):
            self.best, self.best_epoch, self.best_score = self.weights_to_save(), epoch, score
        self.save()
        if distributed.rank() == 0:
            self.on_epoch(result, (recipe.epochs - epoch) * seconds_of_epoch(self.history))

    @property
    def rate(self) -> float:
        return float(next(iter(self.optimizers.values())).param_groups[0]["lr"])

    def means(self) -> dict[str, float]:
        """Means of the losses of the epoch and of their parts, over all ranks and all updates that have them."""
        gathered = distributed.gather_objects((self.sums, self.counted))
        names = list(dict.fromkeys(name for sums, _ in gathered for name in sums))
        return {
            n: sum(sums.get(n, 0.0) for sums, _ in gathered) / sum(counted.get(n, 0) for _, counted in gathered)
            for n in names
        }

    def average_statistics(self) -> None:
        """Average the running statistics of BatchNorm over ranks, also in the average of weights."""
        names = [
            f"{prefix}.{name}"
            for prefix, module in self.model.named_modules() if isinstance(module, nn.modules.batchnorm._NormBase)
            for name, buffer in module.named_buffers(recurse=False) if buffer.is_floating_point()
        ]  # fmt: skip
        for state in (self.model.state_dict(), self.average.values if self.average is not None else {}):
            distributed.average([state[name] for name in names if name in state])

    def average_of_weights(self) -> dict[str, torch.Tensor] | None:
        return self.method.averaged() if self.average is None else self.average.values

    def weights_to_save(self) -> dict[str, torch.Tensor]:
        """A copy of the weights for a checkpoint: the average, where there is one."""
        values = self.average_of_weights()
        return weights_of(self.model) if values is None else copied(values)

    @contextmanager
    def averaged(self) -> Iterator[bool]:
        """A context in which the network has the weights to save. Yields whether those differ from the trained weights."""
        values = self.average_of_weights()
        if values is None:
            yield False
            return
        own = weights_of(self.model)
        self.model.load_state_dict(values)
        try:
            yield True
        finally:
            self.model.load_state_dict(own)

    # ---- on disk ---------------------------------------------------------------------------------------

    def save(self) -> None:
        self.saved = time.monotonic()
        if distributed.world() > 1 and self.step % self.per_epoch:
            return  # within an epoch the sums of the ranks differ; a resumed run starts at the last whole epoch
        methods = distributed.gather_objects(self.method.state())
        if distributed.rank() == 0:
            write_state(
                self.job.state_file,
                self.job.identity,
                {
                    "step": self.step, "history": [asdict(result) for result in self.history], "sums": self.sums,
                    "counted": self.counted, "spent": self.spent, "model": self.model.state_dict(),
                    "optimizers": {name: o.state_dict() for name, o in self.optimizers.items()},
                    "average": self.average.state() if self.average is not None else None,
                    "best": self.best, "best_epoch": self.best_epoch, "best_score": self.best_score,
                    "methods": methods,
                },
            )  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        self.step, self.sums, self.counted = state["step"], state["sums"], state["counted"]
        self.spent, self.history = state["spent"], [EpochResult(**result) for result in state["history"]]
        self.model.load_state_dict(state["model"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        if self.average is not None:
            self.average.restore(state["average"])
        self.best, self.best_epoch, self.best_score = state["best"], state["best_epoch"], state["best_score"]
        self.method.restore(state["methods"][distributed.rank()])


def normalizes_by_rank(model: nn.Module) -> bool:
    """Whether BatchNorm normalises each rank's part of a batch, and not the whole batch."""
    synchronized = nn.SyncBatchNorm
    return distributed.world() > 1 and any(
        isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, synchronized)
        for module in model.modules()
    )
