"""What an update costs: AT-LR over plain AT, both over a bare PyTorch loop, and AT over AT with the channels first.

    python -m benchmarks.epoch mnist|resnet18 [--device cpu] [--threads 1] [--batch 64] [--steps 7] [--updates 4] [--rounds 5]

mnist: lsa's CNN on 28 x 28; resnet18: torchvision's for 32 x 32 (a 3 x 3 first convolution, no first pooling). Random images.
Every variant has its own copy of one network and makes the same updates, Adam, PGD at 0.3 or 8/255; at-lr holds the first
hidden activation, its default. In each round the variants run in turn, in an order that moves on, so that what else the machine does hits
all; the ratios are of times within a round, their median and range. Times on the CPU are processor time.
"""

import argparse
import copy
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.audit import resnet18
from benchmarks.paper_tables import activations
from benchmarks.training import RECIPE, make_method
from lsa_cli.attacks import make_threat
from lsa_cli.cli.memory import keep_freed_memory
from lsa_cli.data import LabelledData
from lsa_cli.hardening.job import Job
from lsa_cli.hardening.recipes import trainable_names
from lsa_cli.hardening.trainer import Training
from lsa_cli.hardening.weights import training_mode
from lsa_cli.models.architectures import build_architecture
from lsa_cli.models.classifier import Classifier

CHANNELS_FIRST = "at, channels first"
RATIOS = (("at-lr", "at"), ("at", "bare loop"), ("at-lr", "bare loop"), ("at", CHANNELS_FIRST))


NETWORKS = {
    "mnist": (lambda: build_architecture("lsa:mnist-cnn", {}), (1, 28, 28), 0.3),
    "resnet18": (resnet18, (3, 32, 32), 8 / 255),
}


def ours(name, model, x, y, eps, given, folder):
    """Updates of lsa's training loop with the method at or at-lr."""
    data = LabelledData("random", y.numpy(), lambda rows: x[torch.from_numpy(np.asarray(rows))])
    layers = activations(model, data, given.device)[:1] if name == "at-lr" else ()
    method = make_method(
        "at-lr" if layers else "at", {"base": "pgd"}, threat=make_threat("linf", eps), steps=given.steps, classes=10,
        samples=len(x), input_shape=tuple(x.shape[1:]), layers=layers, gammas=(0.5,) * len(layers),
    )  # fmt: skip
    places = np.arange(len(x))
    job = Job(
        model, method, data, y.numpy(), places, places, method.task.threat, replace(RECIPE, epochs=1000, batch_size=given.batch),
        trainable_names(model, [], None), torch.device(given.device), 0, folder / "state", {}, False,
    )  # fmt: skip
    training = Training(job, lambda *_: None, lambda *_: None)
    if name == CHANNELS_FIRST:
        model.to(memory_format=torch.contiguous_format)

    def run():
        training_mode(training.model)
        for batch, count in training.epoch_batches(training.step // training.per_epoch, 0):
            training.update(batch, count)
            training.step += 1

    return run


def bare_loop(model, x, y, eps, given):
    """What one would write by hand: Madry's training with no library."""
    optimizer, generator = torch.optim.Adam(model.parameters(), 1e-3), np.random.default_rng(0)

    def run():
        order = torch.from_numpy(generator.permutation(len(x)))
        for rows in order.split(given.batch):
            clean, labels = x[rows].to(given.device), y[rows].to(given.device)
            model.eval()
            x_adv = (clean + torch.empty_like(clean).uniform_(-eps, eps)).clamp(0, 1)
            for _ in range(given.steps):
                x_adv.requires_grad_(True)
                (gradient,) = torch.autograd.grad(F.cross_entropy(model(x_adv), labels), x_adv)
                moved = x_adv.detach() + 2.5 * eps / given.steps * gradient.sign()
                x_adv = torch.minimum(torch.maximum(moved, clean - eps), clean + eps).clamp(0, 1)
            model.train()
            optimizer.zero_grad()
            F.cross_entropy(model(x_adv), labels).backward()
            optimizer.step()

    return run


def seconds(run, device):
    """Processor time on the CPU, which other processes change little; on CUDA the time until the device is done."""
    if not device.startswith("cuda"):
        started = time.process_time()
        run()
        return time.process_time() - started
    torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--updates", type=int, default=4, help="of each variant in a round; an epoch has many more")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    build, shape, eps = NETWORKS[given.network]
    first = Classifier(build()).to(given.device)
    x, y = torch.rand(given.batch * given.updates, *shape), torch.randint(0, 10, (given.batch * given.updates,))
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        variants = {"bare loop": bare_loop(copy.deepcopy(first), x, y, eps, given)}
        for name in ("at", "at-lr", CHANNELS_FIRST):
            variants[name] = ours(name, copy.deepcopy(first), x, y, eps, given, Path(folder))
        for run in variants.values():  # warms up
            run()
        names, took = list(variants), {name: [] for name in variants}
        for number in range(given.rounds):
            for place in range(len(names)):
                name = names[(place + number) % len(names)]
                took[name].append(seconds(variants[name], given.device))
    print(
        f"torch {torch.__version__}, {given.device}, {given.threads} threads of {len(os.sched_getaffinity(0))} cores, load "
        f"average {load:.1f} before; {given.network}, batch {given.batch}, PGD-{given.steps}"
    )
    for name in names:
        print(f"{name}: {given.batch * given.updates / statistics.median(took[name]):.0f} images/s")
    for above, below in RATIOS:
        ratios = [a / b for a, b in zip(took[above], took[below], strict=True)]
        print(f"{above} over {below}: {statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]")


if __name__ == "__main__":
    main()
