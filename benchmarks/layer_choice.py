"""Does a scan say which layer to regularize? The regret of rules that choose it before a hardening.

    LSA_DATA_ROOT=... python -m benchmarks.layer_choice [--seeds 3] [--images 4000] [--passes 40] [--out FILE] [NETWORK ...]

A network is trained on clean images. Then, for a weak base (fast) and a strong one (pgd with 3 steps), it is hardened once
without the regularizer and once with each of its hidden activations regularized, at an equal number of passes for each image
(a forward and backward pass of it). Robust accuracy is that under PGD-50 with the margin loss on test images. The regret of a
rule is the largest robust accuracy of all choices, "no layer" among them, minus that of its choice, in points. The largest
of several noisy numbers is too large, so that even a perfect rule seems to have some regret: "best of another seed" is the
choice that was best with the next seed, and shows how much of the regret is noise.

Networks with convolutions train in bfloat16 where the processor multiplies in it, and all are judged in float32.

The rules look at the network before the hardening, and at held-out training images under PGD-10:

- none, first, last: by place alone;
- relative error: the largest, the rule of arXiv 2202.02626 for the most vulnerable layer;
- gain: the largest ratio of the relative error to that of the layer before;
- criticality, and least criticality: the largest and the smallest ratio of the mean squared change to that of the layer before
  (arXiv 2408.10204 takes the largest);
- weight criticality, and least of it: the rise of the adversarial loss when the weights of the layer change by a tenth of
  their norm (arXiv 2308.02533 fine-tunes the least critical layer);
- relative gradient norm: the largest ||gradient|| / ||weights|| of the adversarial loss (arXiv 2210.11466);
- payoff: the largest first-order fall of the adversarial loss on one half of the held-out images, for a step of a given
  share of ||weights|| along the gradient of the other half (our formula);
- probe: the choice with the largest held-out robust accuracy after a quarter of the passes.

Rules about weights take those before the activation. Lines of --out are results of single hardenings; a second run with the
same file continues it.
"""

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from torchvision import datasets

from benchmarks.paper_print import print_row
from benchmarks.train_networks import cifar10_train, cifar_resnet8, mnist_mlp
from benchmarks.training import RECIPE, harden, make_method
from lsa_cli.attacks import make_threat
from lsa_cli.attacks.base import undisturbed
from lsa_cli.attacks.gradient import PGD
from lsa_cli.data import LabelledData
from lsa_cli.hardening.clat import criticality
from lsa_cli.hardening.recipes import trains_in_bfloat16
from lsa_cli.hardening.regularizer import record
from lsa_cli.hardening.rift import robust_criticality
from lsa_cli.hardening.sites import layers_of
from lsa_cli.measures import relative_error
from lsa_cli.models.classifier import PRESETS, Classifier
from tests.foreign_networks import cifar10_test, small_cnn

CIFAR = PRESETS["cifar10"]
NETWORKS = {  # network, data, normalization, eps
    "mnist_cnn": (small_cnn, datasets.MNIST, None, 0.2),
    "mnist_mlp": (mnist_mlp, datasets.MNIST, None, 0.1),
    "fashion_cnn": (small_cnn, datasets.FashionMNIST, None, 0.1),
    "cifar_resnet8": (cifar_resnet8, None, CIFAR, 4 / 255),
}
BASES = {"fast": (1, 5.0), "pgd": (3, 1.0)}  # steps of the training attack, and gamma
NONE = "none"
PROBE = 0.25  # of the passes
HELD_OUT, TEST, CLEAN_EPOCHS, RATE, TINY = 400, 1000, 5, 2e-3, 1e-20


def images_of(source, root, count):
    """((x, y) of count training images and the held-out ones behind them, (x, y) of test images)."""
    if source is None:
        x, y = cifar10_train(root)
        x_test, y_test = cifar10_test(root)
        return (x[: count + HELD_OUT], y[: count + HELD_OUT]), (x_test[:TEST] / 255, y_test[:TEST])
    train, test = (source(root, train=is_train) for is_train in (True, False))
    first = count + HELD_OUT
    return (train.data[:first, None] / 255, train.targets[:first]), (test.data[:TEST, None] / 255, test.targets[:TEST])


def trained_on_clean(model, x, y, seed):
    """The network after some epochs on clean images, in evaluation mode."""
    optimizer, order = torch.optim.Adam(model.parameters(), lr=RATE), np.random.default_rng(seed)
    model.train()
    for _ in range(CLEAN_EPOCHS):
        for rows in np.array_split(order.permutation(len(x)), len(x) // 100):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    return model.eval()


def robust_accuracy(model, threat, x, y, steps=50):
    """In percent, under PGD with the margin loss."""
    return accuracy_under(PGD(threat=threat, steps=steps, loss="margin"), model, x, y)


def accuracy_under(attack, model, x, y):
    """In percent."""
    x_adv = attack(model, x, y, goal="break")
    with torch.no_grad():
        return 100 * float((model(x_adv).argmax(1) == y).float().mean())


def candidates_of(model, x):
    """{activation: the layer with weights before it}, in order."""
    found, weighted = {}, None
    for layer in layers_of(model, x[:2]):
        if layer.is_learnable:
            weighted = layer
        elif layer.is_activation and not layer.is_output and weighted is not None:
            found[layer.name] = weighted
    return found


def scores_of(model, threat, x, y):
    """{rule: {layer: the larger, the sooner it is chosen}}."""
    candidates = candidates_of(model, x)
    names = tuple(candidates)
    x_adv = PGD(threat=threat, steps=10)(model, x, y)
    with undisturbed(model), torch.no_grad():
        with record(model, names) as clean:
            model(x)
        with record(model, names) as moved:
            model(x_adv)
    level = [float(relative_error(x, x_adv).nanmean())]
    level += [float(relative_error(clean[name], moved[name]).nanmean()) for name in names]
    critical = criticality(model, names, x, x_adv)
    weights = {name: [p for p in layer.module.parameters() if p.ndim > 1] for name, layer in candidates.items()}
    risk = {name: robust_criticality(model, own, [(x_adv, y)]) for name, own in weights.items()}
    relative, payoff = gradient_rules(model, weights, x_adv, y)
    return {
        "first": {name: -place for place, name in enumerate(names)},
        "last": {name: place for place, name in enumerate(names)},
        "relative error": dict(zip(names, level[1:], strict=True)),
        "gain": {name: after / before for name, before, after in zip(names, level[:-1], level[1:], strict=True)},
        "criticality": critical, "least criticality": {name: -value for name, value in critical.items()},
        "weight criticality": risk, "least weight criticality": {name: -value for name, value in risk.items()},
        "relative gradient norm": relative, "payoff": payoff,
    }  # fmt: skip


def gradient_rules(model, weights, x_adv, y):
    """{layer: relative gradient norm}, and {layer: payoff for a step of the length of the weights}."""
    relative, payoff = {}, {}
    halves = slice(0, len(y) // 2), slice(len(y) // 2, None)
    for name, own in weights.items():
        for weight in own:
            weight.requires_grad_(True)
        one, other = (
            torch.cat([g.flatten() for g in torch.autograd.grad(F.cross_entropy(model(x_adv[rows]), y[rows]), own)])
            for rows in halves
        )
        size = torch.cat([weight.detach().flatten() for weight in own]).norm()
        relative[name] = float((one + other).norm() / 2 / size)
        payoff[name] = float(size * (one @ other) / one.norm().clamp_min(TINY))
    return relative, payoff


def hardened(start, layer, base, threat, images, passes, share, seed):
    """The robust accuracy after a hardening with this layer, or NONE, regularized: of all passes on test images, of a share of
    them on held-out ones."""
    model, (x, y), (x_test, y_test) = start(), *images
    steps, gamma = BASES[base]
    held = [] if layer == NONE else [layer]
    data = LabelledData("images", y.numpy().astype(np.int64), lambda rows: x[torch.from_numpy(np.asarray(rows))])
    rows = np.arange(len(y))
    method = make_method(
        "at-lr" if held else "at", {"base": base}, threat=threat, steps=steps, classes=10, samples=len(y) - HELD_OUT,
        input_shape=tuple(x.shape[1:]), layers=tuple(held), gammas=(gamma,) * len(held),
    )  # fmt: skip
    recipe = replace(
        RECIPE, epochs=max(1, round(share * passes / (steps + 1 + len(held)))), lr=RATE, warmup=0.3,
        amp=trains_in_bfloat16(model, torch.device("cpu")),
    )  # fmt: skip
    result = harden(
        model, method, data, train_rows=rows[:-HELD_OUT], validation=rows[-HELD_OUT:], recipe=recipe, seed=seed
    )
    model.load_state_dict(result.last)
    model.eval()
    if share < 1:
        return {"held_out": robust_accuracy(model, threat, x[-HELD_OUT:], y[-HELD_OUT:], steps=20)}
    return {"robust": robust_accuracy(model, threat, x_test, y_test)}


def run(name, seed, given, root, lines):
    """All hardenings of one network and seed that `lines` does not have yet, and what each rule chooses."""
    network, source, normalization, eps = NETWORKS[name]
    images = images_of(source, root, given.images)
    threat = make_threat("linf", eps)
    torch.manual_seed(seed)
    model = trained_on_clean(Classifier(network(), normalization), *(part[:-HELD_OUT] for part in images[0]), seed)
    weights = {key: value.clone() for key, value in model.state_dict().items()}

    def start():
        fresh = Classifier(network(), normalization)
        fresh.load_state_dict(weights)
        return fresh

    x, y = (part[-HELD_OUT:] for part in images[0])
    scores = scores_of(start().eval(), threat, x, y)
    choices = [NONE, *scores["first"]]
    for base in BASES:
        for layer in choices:
            for share in (PROBE, 1.0):
                key = [name, seed, base, layer, share]
                if not any(line["key"] == key for line in lines):
                    found = hardened(start, layer, base, threat, images, given.passes, share, seed)
                    lines.append({"key": key, "settings": [given.images, given.passes], **found})
                    with given.out.open("a") as file:
                        file.write(json.dumps(lines[-1]) + "\n")
    return {NONE: NONE} | {rule: max(score, key=score.get) for rule, score in scores.items()}


def regrets(lines, chosen):
    """{(base, rule): [regret of each network and seed]}; chosen: {(network, seed): {rule: layer}}."""
    found = {}
    results = {tuple(line["key"]): line for line in lines}
    seeds = {}
    for name, seed in chosen:
        seeds.setdefault(name, []).append(seed)
    for (name, seed), picks in chosen.items():
        for base in BASES:
            layers = [key[3] for key in results if key[:3] == (name, seed, base) and key[4] == 1]

            def value(layer, share=1.0, of="robust", seed=seed, name=name, base=base):
                return results[name, seed, base, layer, share][of]

            best = max(layers, key=value)
            picks = picks | {"probe": max(layers, key=lambda layer: value(layer, PROBE, "held_out"))}
            following = seeds[name][(seeds[name].index(seed) + 1) % len(seeds[name])]
            if following != seed:
                picks["best of another seed"] = max(layers, key=lambda layer: value(layer, seed=following))
            for rule, layer in picks.items():
                found.setdefault((base, rule), []).append(value(best) - value(layer))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), metavar="NETWORK")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--passes", type=int, default=40, help="of each image")
    parser.add_argument("--out", type=Path, default=Path("layer_choice.jsonl"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    root = Path(os.environ["LSA_DATA_ROOT"])
    lines = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    lines = [line for line in lines if line["settings"] == [given.images, given.passes]]
    chosen = {
        (name, seed): run(name, seed, given, root, lines) for seed in range(given.seeds) for name in given.networks
    }
    print_choices(lines, chosen)


def print_choices(lines, chosen):
    found = regrets(lines, chosen)
    print_row(["rule", *(f"regret, {base}" for base in BASES)])
    print_row(["---"] * (1 + len(BASES)))
    for rule in dict.fromkeys(rule for _, rule in found):
        cells = []
        for base in BASES:
            values = np.array(found[base, rule])
            error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
            cells.append(f"{values.mean():.1f} ± {error:.1f}")
        print_row([rule, *cells])


if __name__ == "__main__":
    main()
