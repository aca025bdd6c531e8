"""One training by a hardening method, for benchmarks that choose more than `lsa harden` lets them; nothing is left on disk."""

import tempfile
from pathlib import Path

import numpy as np
import torch

from lsa_cli.hardening import HARDENINGS
from lsa_cli.hardening.job import Job
from lsa_cli.hardening.methods import Task
from lsa_cli.hardening.recipes import Recipe, trainable_names
from lsa_cli.hardening.trainer import train
from lsa_cli.measures import relative_error
from lsa_cli.registry import build

RECIPE = Recipe(
    epochs=20, lr=1e-3, optimizer="adam", weight_decay=0.0, schedule="one-cycle", batch_size=128, warmup=0.0,
    clip=0.0, label_smoothing=0.0, average="none", amp=False, augment="none", awp=0.0,
)  # fmt: skip


def make_method(
    name, options, *, threat, steps, classes, samples, input_shape, layers=(), gammas=(), detach_clean=False,
    measure=relative_error, label_smoothing=0.0, awp=0.0,
):  # fmt: skip
    """The method with its options; attacked in eval mode, the usual step size.

    The watchdog does not make it stronger, so that gamma and the cost of an update stay as given.
    """
    task = Task(
        threat=threat, steps=steps, step_size=None, layers=layers, gammas=gammas, measure=measure,
        detach_clean=detach_clean, attack_mode="eval", label_smoothing=label_smoothing, awp=awp, classes=classes, samples=samples,
        held_out=0, input_shape=input_shape,
    )  # fmt: skip
    method = build(HARDENINGS.get(name), options, name, task=task)
    method.strengthen = lambda: None
    return method


def harden(model, method, data, *, train_rows, validation, recipe, seed, device="cpu", on_epoch=lambda *_: None):
    """Train every weight of model in place; train_rows, validation: places in data. A method with surgery is prepared."""
    with tempfile.TemporaryDirectory() as folder:
        job = Job(
            model=model, method=method, data=data, labels=data.labels.astype(np.int64), train=train_rows,
            validation=validation, threat=method.task.threat, recipe=recipe, trainable=trainable_names(model, [], None),
            device=torch.device(device), seed=seed, state_file=Path(folder) / "state.pt", identity={}, resume=False,
        )  # fmt: skip
        return train(job, lambda what, done, total: None, on_epoch)
