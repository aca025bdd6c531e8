"""What an audit costs: the first command, the layer scan against bare forward passes, PGD against a bare loop, peers,
corruptions.

    python -m benchmarks.audit [--threads 2] [command scan pgd peers corruptions]

Ratios are of interleaved runs in one process; memory is each process's own peak.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
SAMPLES = ROOT / "sample_models"


def paired(first, second, rounds, clock=time.perf_counter):
    """Run the two in turn; seconds of each (medians) and the median, smallest and largest ratio first / second."""
    times = [[], []]
    first(), second()
    for _ in range(rounds):
        for kept, run in zip(times, (first, second), strict=True):
            started = clock()
            run()
            kept.append(clock() - started)
    ratios = sorted(a / b for a, b in zip(*times, strict=True))
    return (
        statistics.median(times[0]),
        statistics.median(times[1]),
        statistics.median(ratios),
        ratios[0],
        ratios[-1],
    )


def in_child(code, threads):
    """Run Python code in a process of its own; what it prints as JSON, and its peak memory in MB."""
    script = f"import torch; torch.set_num_threads({threads})\n{code}\nimport resource, json\n"
    script += "print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def command(threads):
    """`lsa audit sample_models/mnist_cnn.pt`, no flags but the number of threads: under 90 s and 1.5 GB."""
    for name in ("mnist_cnn.pt", "mnist_cnn_at.pt", "moon_mlp.pt"):
        with tempfile.TemporaryDirectory() as folder:
            before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
            started = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "lsa_cli", "audit", str(SAMPLES / name), "--threads", str(threads), "-q"],
                cwd=folder, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
            seconds = time.perf_counter() - started
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
            shown = f"{peak / 1024:.0f} MB" if peak > before else "below the one before"
        print(f"lsa audit {name}: {seconds:.1f} s, peak {shown}")


VGG = """
from torchvision.models import vgg19
from lsa_cli.auditing.observation import observe
from lsa_cli.attacks import make_threat
from lsa_cli.layers import find_layers, select_layers
from lsa_cli.measures import relative_error
from lsa_cli.models.classifier import Classifier
torch.manual_seed(0)
classifier = Classifier(vgg19(weights=None)).eval()
threat = make_threat("linf", 4 / 255)
x = torch.rand(16, 3, 224, 224)
x_adv = threat.project(x + 0.01 * torch.randn_like(x).sign(), x)
index = torch.arange(16)
"""
BARE = "with torch.no_grad(): classifier(torch.cat([x, x_adv, x]))"
NAMES = "names = [l.name for l in select_layers(find_layers(classifier.body, lambda: classifier.body(x[:2]), 2), ['activations'])]\n"
SCAN = "observe(classifier, names, relative_error, threat, x, x_adv, index)"


def scan(threads):
    """The layer scan on VGG-19, batch 16 at 224 x 224, against the bare forward pass on the same 48 inputs."""
    base = in_child(VGG, threads)
    bare, scanned = in_child(VGG + NAMES + BARE, threads), in_child(VGG + NAMES + SCAN, threads)
    print(f"VGG-19 peak memory: bare {bare:.0f} MB, scan {scanned:.0f} MB, ratio {scanned / bare:.2f}")
    print(f"  above the loaded network ({base:.0f} MB): ratio {(scanned - base) / (bare - base):.2f}")
    space = {}
    exec("import torch\n" + VGG + NAMES, space)
    scan_s, bare_s, ratio, low, high = paired(lambda: exec(SCAN, space), lambda: exec(BARE, space), rounds=5)
    print(f"VGG-19 time: scan {scan_s:.2f} s, bare {bare_s:.2f} s, ratio {ratio:.2f} [{low:.2f}, {high:.2f}]")


def sample(name, count):
    import torch

    from lsa_cli.auditing.network import open_network
    from lsa_cli.data import stratified_subset
    from lsa_cli.settings import settings_from

    network = open_network(SAMPLES / name, settings_from({}), {})
    rows = stratified_subset(network.labels, count, 0)
    return (
        network.classifier.eval().requires_grad_(False),
        network.data.read(rows),
        torch.from_numpy(network.labels[rows]),
    )


def resnet18():
    """torchvision's for 32 x 32 images, with random weights: a 3 x 3 first convolution and no first pooling."""
    from torch import nn
    from torchvision.models import resnet18 as build

    network = build(weights=None, num_classes=10)
    network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    return network


def pgd(threads):
    """PGD-20, full steps, against a bare loop of 20 forward + input-gradient passes on the same batch."""
    import torch
    from torch.nn import functional as F

    from lsa_cli.attacks import ATTACKS, make_threat
    from lsa_cli.models.classifier import Classifier

    mnist, x, y = sample("mnist_cnn_at.pt", 256)
    networks = {
        "mnist_cnn_at, batch 256": (mnist, x, y, 0.3),
        "ResNet-18 32x32, batch 64": (
            Classifier(resnet18()).eval().requires_grad_(False), torch.rand(64, 3, 32, 32), torch.arange(64) % 10, 8 / 255,
        ),
    }  # fmt: skip
    for name, (model, inputs, labels, eps) in networks.items():
        attack = ATTACKS.get("pgd")(threat=make_threat("linf", eps))

        def attacked(attack=attack, model=model, inputs=inputs, labels=labels):
            attack(model, inputs, labels)

        def bare(model=model, inputs=inputs, labels=labels):
            for _ in range(20):
                moved = inputs.clone().requires_grad_(True)
                torch.autograd.grad(F.cross_entropy(model(moved), labels, reduction="sum"), moved)

        ours, loop, ratio, low, high = paired(attacked, bare, rounds=7)
        print(f"PGD-20 on {name}: {ours:.2f} s, bare loop {loop:.2f} s, ratio {ratio:.3f} [{low:.3f}, {high:.3f}]")


def peers(threads):
    """PGD with one random start and the same steps on 1,000 test images: robust accuracy of each library."""
    import torch

    from lsa_cli.attacks import ATTACKS, make_threat
    from lsa_cli.stats import wilson

    model, x, y = sample("mnist_cnn_at.pt", 1000)
    eps, steps, size = 0.3, 40, 0.01
    ours = ATTACKS.get("pgd")(threat=make_threat("linf", eps), steps=steps, step_size=size)
    runs = {"lsa": lambda x, y: ours(model, x, y)}
    try:
        import torchattacks

        theirs = torchattacks.PGD(model, eps=eps, alpha=size, steps=steps, random_start=True)
        runs["torchattacks"] = lambda x, y: theirs(x, y)
    except ImportError as error:
        print("torchattacks is not installed:", error)
    try:
        import foolbox

        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1))
        linf = foolbox.attacks.LinfPGD(abs_stepsize=size, steps=steps, random_start=True)
        runs["foolbox"] = lambda x, y: linf(wrapped, x, y, epsilons=eps)[1]
    except ImportError as error:
        print("foolbox is not installed:", error)
    try:
        from adv_lib.attacks import pgd_linf

        runs["adv-lib"] = lambda x, y: pgd_linf(
            model, x, y, eps, steps=steps, absolute_step_size=size, random_init=True
        )
    except ImportError as error:
        print("adv-lib is not installed:", error)
    for name, run in runs.items():
        torch.manual_seed(0)
        started, right = time.perf_counter(), 0
        for start in range(0, len(x), 250):
            x_adv = run(x[start : start + 250], y[start : start + 250])
            with torch.no_grad():
                right += int((model(x_adv).argmax(1) == y[start : start + 250]).sum())
        low, high = wilson(right, len(x))
        print(
            f"PGD-{steps} by {name}: robust {right / len(x):.1%} [{low:.1%}, {high:.1%}], {time.perf_counter() - started:.1f} s"
        )


def corruptions(threads):
    """Each corruption on a batch of 256 images of 32 x 32 and of 16 of 224 x 224: the slowest of severities 1, 3, 5."""
    import torch

    from lsa_cli.attacks import CORRUPTIONS

    for shape in ((256, 3, 32, 32), (16, 3, 224, 224)):
        x, y = torch.rand(shape), torch.zeros(shape[0], dtype=torch.long)
        slowest = {}
        for name in CORRUPTIONS.names():
            seconds = []
            for severity in (1, 3, 5):
                corruption = CORRUPTIONS.get(name)(severity=severity, bounds=(0.0, 1.0))
                corruption(None, x, y)
                started = time.perf_counter()
                corruption(None, x, y)
                seconds.append(time.perf_counter() - started)
            slowest[name] = 1000 * max(seconds)
        shown = ", ".join(f"{name} {ms:.0f}" for name, ms in sorted(slowest.items(), key=lambda entry: entry[1]))
        print(f"corruptions of {shape}, ms: {shown}")


PARTS = {"command": command, "scan": scan, "pgd": pgd, "peers": peers, "corruptions": corruptions}


def main():
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=", ".join(PARTS))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    unknown = set(arguments.parts) - set(PARTS)
    if unknown:
        parser.error(f"there are {', '.join(PARTS)}, not {', '.join(sorted(unknown))}")
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {arguments.threads} threads")
    for part in arguments.parts or PARTS:
        PARTS[part](arguments.threads)


if __name__ == "__main__":
    main()
