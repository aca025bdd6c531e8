import dataclasses

import numpy as np
import pytest
import torch

from lsa_cli.attacks import make_threat
from lsa_cli.data import LabelledData
from lsa_cli.hardening.job import Job
from lsa_cli.hardening.methods import HARDENINGS, Batch, Task
from lsa_cli.hardening.recipes import Recipe, trainable_names
from lsa_cli.hardening.trainer import train
from lsa_cli.measures import MEASURES
from lsa_cli.models.classifier import Classifier
from lsa_cli.registry import build

RECIPE = Recipe(
    epochs=2, lr=0.01, optimizer="adam", weight_decay=0.0, schedule="one-cycle", batch_size=16, warmup=0.3, clip=0.0,
    label_smoothing=0.0, average="none", amp=False, augment="none", awp=0.0,
)  # fmt: skip


def small_network(seed=0):
    """A convolutional network with BatchNorm and dropout for 1 x 8 x 8 images of three classes."""
    torch.manual_seed(seed)
    body = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(inplace=True), torch.nn.Dropout(0.1),
        torch.nn.Flatten(), torch.nn.Linear(144, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3),
    )  # fmt: skip
    return Classifier(body)


def stripes(count=120, seed=3):
    """Images that are brighter in the upper, middle or lower third: three classes that can be learnt."""
    generator = np.random.default_rng(seed)
    y = np.arange(count) % 3
    x = generator.uniform(0.2, 0.5, (count, 1, 8, 8)).astype(np.float32)
    for row, label in enumerate(y):
        x[row, 0, label * 3 : label * 3 + 2] += 0.4
    images = torch.from_numpy(x)
    return LabelledData("stripes", y.astype(np.int64), lambda rows: images[torch.from_numpy(np.asarray(rows))])


def make_task(layers=("2", "6"), gamma=0.5, **changes):
    values = {
        "threat": make_threat("linf", 0.1), "steps": 2, "step_size": None, "layers": tuple(layers),
        "gammas": (gamma,) * len(layers), "measure": MEASURES.get("relative-error"), "detach_clean": False,
        "attack_mode": "eval", "label_smoothing": 0.0, "awp": 0.0, "classes": 3, "samples": 96, "held_out": 24,
        "input_shape": (1, 8, 8),
    }  # fmt: skip
    return Task(**{**values, **changes})


def make_method(name="at-lr", options=None, **changes):
    return build(HARDENINGS.get(name), options or {}, name, task=make_task(**changes))


def make_job(folder, method=None, model=None, resume=False, recipe=RECIPE, trainable=None, **changes):
    data = stripes()
    model = model or small_network()
    values = {
        "model": model, "method": method or make_method(), "data": data, "labels": data.labels,
        "train": np.arange(24, 120), "validation": np.arange(24), "threat": make_threat("linf", 0.1),
        "recipe": recipe, "trainable": trainable or trainable_names(model, [], None), "device": torch.device("cpu"),
        "seed": 5, "state_file": folder / "state.pt", "identity": {"what": "a test"}, "resume": resume,
    }  # fmt: skip
    return Job(**{**values, **changes})


def run(job, stop_after=None):
    """Train; with stop_after, as if killed after so many updates."""
    done = [0]

    def progress(what, step, total):
        done[0] += 1
        if stop_after is not None and done[0] == stop_after:
            raise KeyboardInterrupt

    return train(job, progress, lambda result, left: None)


def recipe(**changes):
    return dataclasses.replace(RECIPE, **changes)


@pytest.fixture
def batch():
    data = stripes(12)
    return Batch(data.read(np.arange(12)), torch.from_numpy(data.labels), torch.arange(12), 5, 0.9, 1.0)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
