"""What a second process buys: images a second of `lsa harden` on two gloo ranks with a thread each, over one process.

    python -m benchmarks.ranks [--samples 4096] [--rounds 3]

One epoch of `at-lr` with PGD-7 on MNIST images through lsa's CNN, batch 128 in all, without validation and audits: the
updates alone, as the training loop makes them. In each round one process and the pair run in turn, so that what else
the machine does hits both.
"""

import argparse
import os
import socket
import statistics
import tempfile
import time
from pathlib import Path

MODEL = Path(__file__).parent.parent / "sample_models" / "mnist_cnn.pt"


def one_rank(number, world, port, samples, rounds, folder):
    """Images a second of each round, written by the first rank."""
    os.environ |= {"RANK": str(number), "WORLD_SIZE": str(world), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    import torch

    from lsa_cli import distributed

    torch.set_num_threads(1)
    if world == 1:
        found = rates(samples, rounds, folder)
    else:
        with distributed.joined():
            found = rates(samples, rounds, folder)
    if number == 0:
        (folder / f"{world}.txt").write_text(" ".join(map(str, found)))


def rates(samples, rounds, folder):
    import dataclasses

    import torch

    from lsa_cli import distributed
    from lsa_cli.attacks import make_threat
    from lsa_cli.hardening import adversarial_training  # noqa: F401  the methods register themselves
    from lsa_cli.hardening.job import Job
    from lsa_cli.hardening.plan import make_harden_plan
    from lsa_cli.hardening.trainer import Training
    from lsa_cli.settings import merge, settings_from

    settings, origin = merge(
        ("option", settings_from({"device": "cpu", "threads": 1, "harden": {"epochs": rounds + 1}}))
    )
    plan = make_harden_plan(MODEL, settings, origin)
    layers = plan.layers or (plan.network.layers[0].name,)
    job = Job(
        plan.network.classifier, plan.make_method(layers), plan.network.data, plan.network.labels, plan.train[:samples],
        plan.validation[:64], make_threat("linf", 0.3), dataclasses.replace(plan.recipe, warmup=0.0),
        plan.trainable(layers), torch.device("cpu"), 0, folder / f"state{distributed.world()}", {}, False,
    )  # fmt: skip
    training = Training(job, lambda what, done, total: None, lambda result, left: None)
    training.training_mode()
    found = []
    for epoch in range(rounds + 1):
        wait_for_turn(folder, epoch, distributed.world())
        distributed.agreed(lambda: None)  # all ranks begin at once
        started = time.perf_counter()
        for batch, count in training.epoch_batches(epoch, 0):
            training.update(batch, count)
            training.step += 1
        distributed.agreed(lambda: None)
        found.append(training.per_epoch * training.size / (time.perf_counter() - started))
        if distributed.rank() == 0:
            (folder / f"done-{epoch}-{distributed.world()}").touch()
    return found[1:]  # the first one warms up


def wait_for_turn(folder, epoch, world):
    """One process, then two, then the next round."""
    before = folder / (f"done-{epoch}-1" if world == 2 else f"done-{epoch - 1}-2")
    while (world == 2 or epoch > 0) and not before.exists():
        time.sleep(0.02)


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def main():
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        running = [
            torch.multiprocessing.spawn(
                one_rank, (world, free_port(), given.samples, given.rounds, folder), nprocs=world, join=False
            )
            for world in (1, 2)
        ]
        for several in running:
            while not several.join():
                pass
        one, two = ([float(rate) for rate in (folder / f"{world}.txt").read_text().split()] for world in (1, 2))
    ratios = [b / a for a, b in zip(one, two, strict=True)]
    print(f"torch {torch.__version__}, {len(os.sched_getaffinity(0))} cores, load average {load:.1f} before")
    print(f"one process {statistics.median(one):.0f} images/s, two {statistics.median(two):.0f} images/s")
    print(f"ratio {statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]")


if __name__ == "__main__":
    main()
