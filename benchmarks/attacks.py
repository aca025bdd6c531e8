"""PGD-20 side by side: our attack, on the network alone and with its faster copy, against other libraries and a bare loop.

    python -m benchmarks.attacks [--device cpu|cuda] [--threads 2] [--rounds 5] [--quick] [pgd audit]

Every contender works in a process of its own (how a process keeps memory is part of what is compared) and they take
turns; ratios are of runs of the same round. The time is that of the attack; robust accuracy is then the network's own.
It is process time on a CPU, as other work on the machine changes it least, and elapsed time on a GPU.
`audit`: the whole audit against its attacks alone, and the time of each of its parts. With cuda also ResNet-18 on
10,000 images, PGD-20 and layer scan.
"""

import argparse
import importlib
import inspect
import json
import statistics
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack, nullcontext
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).parent.parent
STEPS = 20
LIBRARIES = {"torchattacks": "torchattacks", "foolbox": "foolbox", "adv-lib": "adv_lib", "art": "art"}
OURS = ("lsa", "lsa, the network itself", "lsa, dropping")
# network: radius, samples, batch, and fewer samples for --quick
NETWORKS = {
    "ResNet-18": (8 / 255, 16, 16, 8),
    "mnist_cnn_at": (0.3, 500, 250, 250),
    "mnist_cnn": (0.3, 500, 250, 250),
}


# ---- one contender, in a process of its own ------------------------------------------------------------


def network(name, count, device):
    """A classifier, inputs and labels. ResNet-18 has random weights, and its own answers for labels."""
    import torch

    from benchmarks.audit import resnet18, sample
    from lsa_cli.models.classifier import Classifier

    if name != "ResNet-18":
        model, x, y = sample(f"{name}.pt", count)
        return model.to(device), x.to(device), y.to(device)
    torch.manual_seed(0)
    model = Classifier(resnet18()).to(device)
    x = torch.rand(count, 3, 32, 32).to(device)
    with torch.no_grad():
        model.train()(x[:64])  # BatchNorm sees what it will normalise
        model.eval().requires_grad_(False)
        y = torch.cat([model(part).argmax(1) for part in x.split(256)])
    return model, x, y


def contender(name, model, x, eps):
    """What turns a batch (x, y, first row) into adversarials, with the same radius, steps and random starts."""
    import torch
    from torch.nn import functional as F

    from lsa_cli.attacks import ATTACKS, make_threat
    from lsa_cli.cli.memory import keep_freed_memory
    from lsa_cli.models.precision import channels_last, make_copy

    size = 2.5 * eps / STEPS
    if name in OURS:
        keep_freed_memory()  # as the command does
        copy = None
        if name != OURS[1]:
            with torch.no_grad():
                answers = model(x[:8]).argmax(1)
            copy = make_copy(model, x[:8], answers).model
        attack = ATTACKS.get("pgd")(make_threat("linf", eps), steps=STEPS)
        goal = "break" if name == OURS[2] else "worst"
        as_in_audits = copy is not None and not x.is_cuda

        def ours(x, y, row):
            index = torch.arange(row, row + len(x), device=x.device)
            with channels_last(model) if as_in_audits else nullcontext():
                return attack(model, x, y, index=index, goal=goal, copy=copy)

        return ours
    if name == "bare loop":

        def loop(x, y, row):
            for _ in range(STEPS):
                leaf = x.clone().requires_grad_(True)
                torch.autograd.grad(F.cross_entropy(model(leaf), y, reduction="sum"), leaf)
            return x

        return loop
    if name == "torchattacks":
        import torchattacks

        theirs = torchattacks.PGD(model, eps=eps, alpha=size, steps=STEPS, random_start=True)
        return lambda x, y, row: theirs(x, y)
    if name == "foolbox":
        import foolbox

        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1))
        linf = foolbox.attacks.LinfPGD(abs_stepsize=size, steps=STEPS, random_start=True)
        return lambda x, y, row: linf(wrapped, x, y, epsilons=eps)[1]
    if name == "adv-lib":
        from adv_lib.attacks import pgd_linf

        return lambda x, y, row: pgd_linf(
            model, x, y, eps, steps=STEPS, absolute_step_size=size, random_init=True
        )  # fmt: skip
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    wrapped = PyTorchClassifier(model, torch.nn.CrossEntropyLoss(), tuple(x.shape[1:]), 10, clip_values=(0, 1))
    pgd = ProjectedGradientDescentPyTorch(
        wrapped, eps=eps, eps_step=size, max_iter=STEPS, num_random_init=1, batch_size=len(x), verbose=False
    )
    return lambda x, y, row: torch.from_numpy(pgd.generate(x.cpu().numpy(), y.cpu().numpy())).to(x.device)


def work(arguments):
    """Read a line, run once, answer with seconds and robust accuracy; until there are no more lines."""
    import torch

    torch.set_num_threads(arguments.threads)
    name, net = arguments.work
    eps, count, batch, fewer = NETWORKS[net]
    model, x, y = network(net, fewer if arguments.quick else count, arguments.device)
    attack = contender(name, model, x[:batch], eps)
    for _ in sys.stdin:
        torch.manual_seed(0)
        clock = time.perf_counter if x.is_cuda else time.process_time
        started, moved = clock(), []
        for row in range(0, len(x), batch):
            moved.append(attack(x[row : row + batch], y[row : row + batch], row))
        if x.is_cuda:
            torch.cuda.synchronize()
        seconds = clock() - started
        with torch.no_grad():
            right = sum(
                int((model(a).argmax(1) == b).sum()) for a, b in zip(moved, y.split(batch), strict=True)
            )  # fmt: skip
        print(json.dumps({"seconds": seconds, "robust": right / len(x)}), flush=True)


# ---- the table -----------------------------------------------------------------------------------------


def pgd(arguments):
    installed = []
    for name, module in LIBRARIES.items():
        try:
            importlib.import_module(module)
            installed.append(name)
        except ImportError:
            print(f"{name} is not installed")
    options = ["--device", arguments.device, "--threads", str(arguments.threads), *["--quick"] * arguments.quick]
    for net in NETWORKS:
        names = [*OURS, "bare loop", *installed]
        children = {
            name: subprocess.Popen(
                [sys.executable, "-m", "benchmarks.attacks", *options, "--work", name, net],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT,
            )
            for name in names
        }  # fmt: skip
        rounds = [{name: _ask(name, child) for name, child in children.items()} for _ in range(arguments.rounds + 1)]
        for child in children.values():
            child.stdin.close()
            child.wait()
        _show(net, names, rounds[1:])  # the first one warms up


def _ask(name, child):
    child.stdin.write("\n")
    child.stdin.flush()
    answer = child.stdout.readline()
    if not answer:
        raise SystemExit(f"{name} ended with an error; run its line with --work to see it")
    return json.loads(answer)


def _show(net, names, rounds):
    eps, _, batch, _ = NETWORKS[net]
    print(f"\n{net}, linf {eps:.4g}, PGD-{STEPS}, batches of {batch}; ratios: median [smallest, largest]")
    columns = [OURS[0], OURS[2]]
    print(f"{'':25} {'seconds':>8} {'robust':>7}  " + "  ".join(f"{c + ' / it':^22}" for c in columns))
    for name in names:
        seconds = statistics.median(row[name]["seconds"] for row in rounds)
        line = f"{name:25} {seconds:8.2f} {rounds[0][name]['robust']:7.1%}"
        for column in columns:
            ratios = sorted(row[column]["seconds"] / row[name]["seconds"] for row in rounds)
            line += f"   {statistics.median(ratios):5.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}]   "
        print(line, flush=True)


def audit(arguments):
    """The default audit of mnist_cnn_at, noises aside, against its attacks alone with the same copy and batches; once
    with the checks of the evidence, which cost the same for 1,000 samples as for a million, and once without."""
    from benchmarks.audit import SAMPLES, paired
    from lsa_cli.auditing.cost import numerics
    from lsa_cli.auditing.plan import make_plan
    from lsa_cli.auditing.run import run_audit
    from lsa_cli.cli.memory import keep_freed_memory
    from lsa_cli.models.precision import channels_last, make_copy
    from lsa_cli.settings import settings_from

    keep_freed_memory()
    limit = 250 if arguments.quick else 1000
    settings = settings_from(
        {"limit": limit, "noise": "none", "device": arguments.device, "threads": arguments.threads}
    )  # fmt: skip
    plan = make_plan(SAMPLES / "mnist_cnn_at.pt", settings, {})
    x, y = (tensor.to(plan.network.device) for tensor in _whole(plan))
    copy = make_copy(plan.network.classifier, x[:8], y[:8]).model

    def whole(with_evidence):
        left_out = nullcontext() if with_evidence else mock.patch("lsa_cli.auditing.run.examine", return_value=[])
        with left_out:
            run_audit(plan)

    def alone():
        with numerics(plan.threads), channels_last(plan.network.classifier):  # as in the audit
            for named in plan.attacks:
                for a, b in zip(x.split(plan.batch_size), y.split(plan.batch_size), strict=True):
                    named.attack.run(plan.network.classifier, a, b, copy=copy)

    clock, kind = (
        (time.process_time, "process time") if plan.network.device.type == "cpu" else (time.perf_counter, "time")
    )
    print(f"\naudit of mnist_cnn_at, {limit} samples, against its attacks alone, {kind}")
    for with_evidence, what in (
        (False, "attacks, layer scan, diagnosis, verification"),
        (True, "the same with evidence"),
    ):
        seconds, attacks, ratio, low, high = paired(
            lambda with_evidence=with_evidence: whole(with_evidence), alone, arguments.rounds, clock
        )  # fmt: skip
        print(f"{what}: {seconds:.1f} s and {attacks:.1f} s, ratio {ratio:.2f} [{low:.2f}, {high:.2f}]", flush=True)
    parts = _seconds_of_parts(lambda: run_audit(plan), clock)
    print("parts of one audit, s: " + ", ".join(f"{name} {seconds:.2f}" for name, seconds in parts.most_common()))


def _seconds_of_parts(run, clock):
    """The seconds that one run spends in the parts of an audit, by the name of the function: those of a block, the
    evidence, and each of its checks."""
    from lsa_cli.auditing import block, probing
    from lsa_cli.auditing.evidence import examine

    places = [(block, name) for name in ("_clean_pass", "_attack", "_observed")]
    places += [(probing, name) for name in ("examine_probe", "show_examples")]
    places += [
        (examine, name)
        for name, function in vars(examine).items()
        if inspect.isfunction(function) and "Checked" in str(inspect.signature(function).return_annotation)
    ]
    seconds = Counter()

    def timed(name, function):
        def call(*args, **options):
            started = clock()
            try:
                return function(*args, **options)
            finally:
                seconds[name.strip("_")] += clock() - started

        return call

    with ExitStack() as stack:
        for place, name in places:
            stack.enter_context(mock.patch.object(place, name, timed(name, getattr(place, name))))
        run()
    return seconds


def _whole(plan):
    import torch

    return plan.network.data.read(plan.index), torch.from_numpy(plan.network.labels[plan.index])


def cuda(arguments):
    """ResNet-18 on 10,000 images: PGD-20 and layer scan; with the faster copy and without."""
    import torch

    from lsa_cli import audit as audit_it

    model, x, y = network("ResNet-18", 1000 if arguments.quick else 10_000, arguments.device)
    for fast in (True, False):
        options = {"attack": "pgd", "noise": "none", "eps": 8 / 255, "limit": "all", "batch_size": 500, "fast": fast}
        for _ in range(2):  # the first one warms up
            torch.cuda.synchronize()
            started = time.perf_counter()
            report = audit_it(model.body, data=(x.cpu(), y.cpu()), device=arguments.device, **options)
            seconds = time.perf_counter() - started
        attacked = report.protocol.attacked
        print(f"\nResNet-18, {len(x)} images, PGD-20 + scan: {seconds:.1f} s; attacked {attacked}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="pgd, audit")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="fewer samples")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments)
        return
    parts = {"pgd": pgd, "audit": audit}
    if unknown := set(arguments.parts) - set(parts):
        parser.error(f"there are {', '.join(parts)}, not {', '.join(sorted(unknown))}")
    for part in arguments.parts or parts:
        parts[part](arguments)
    if arguments.device.startswith("cuda"):
        cuda(arguments)


if __name__ == "__main__":
    main()
