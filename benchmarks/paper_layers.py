"""Which layer to hold: does a scan foretell it? From the lines that benchmarks.paper_tables leaves, nothing is trained here.

    python -m benchmarks.paper_layers paper_moon.jsonl [--probe FILE]

A rule looks at the network that was trained without the regularizer, on the same base and from the same seed, and picks a layer. The
tables have what holding each layer then gave: R&G less that of the row without. Rules:

- level, FGSM or PGD-50: the largest relative error, the paper's rule for the most vulnerable layer;
- level of Normal: the same on the normally trained network, which is where the paper looks;
- growth: the largest relative error over that of the layer before (the first layer's is taken as 1, it has none before);
- first, last: by place alone;
- probe (with --probe FILE, the lines of a run with fewer epochs): the layer that gained most in the short run. It is picked on
  the samples that judge it, so its row is above what a probe can give.

Beside them stand the mean over layers, which is what a blind choice gives, and the best layer in hindsight, which no rule
reaches; both show how much there is to be had. "rho" is Spearman's between the rule's order of layers and that of the gains,
averaged over bases and seeds. Mean ± standard deviation over seeds of the mean over bases.
"""

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from benchmarks.paper_print import TITLES, print_row, spread
from benchmarks.published import parse_row, robustness_and_generalisation
from lsa_cli.stats import spearman


def read(path):
    """{model: {(row, seed): record}}; the lines of a search are passed over."""
    models = defaultdict(dict)
    for record in map(json.loads, path.read_text().splitlines()):
        settings = record["settings"]
        key = settings["row"], settings["seed"]
        if "layers" in record and models[settings["model"]].setdefault(key, record) is not record:
            sys.exit(f"{path} has row {key[0]}, seed {key[1]} with several settings; make a file of each")
    return models


def families(records):
    """(base row, seed) -> the rows that hold L0, L1, ... where all of them and the base row are there."""
    held = defaultdict(dict)
    for name, seed in records:
        row = parse_row(name)
        if row.layer is not None and (row.plain, seed) in records:
            held[row.plain, seed][row.layer] = (name, seed)
    layers = max(max(found) for found in held.values()) + 1 if held else 0
    return {key: [found[i] for i in range(layers)] for key, found in sorted(held.items()) if len(found) == layers}


def gains(records, plain, rows, attack):  # -> (layers,), None where one was not judged so
    if any(attack not in records[key] for key in (plain, *rows)):
        return None
    scores = [robustness_and_generalisation(records[key][attack]) for key in (plain, *rows)]
    return np.array(scores[1:]) - scores[0]


def rules_of(records, plain, rows, attack, probed):
    """{rule: (layers,) the larger the sooner it is picked}."""
    base, normal, count = records[plain], records.get(("Normal", plain[1])), len(rows)
    found = {f"level, {TITLES[name]}": np.array(curve) for name, curve in base["layers"].items()}
    if normal is not None:
        found["level of Normal, FGSM"] = np.array(normal["layers"]["fgsm"])
    level = np.array(base["layers"]["pgd"])
    found["growth, PGD-50"] = np.array([1.0, *(level[1:] / level[:-1])])
    found["first"], found["last"] = -np.arange(count, dtype=float), np.arange(count, dtype=float)
    if probed and all(key in probed for key in (plain, *rows)):
        short = gains(probed, plain, rows, attack)
        if short is not None:
            found["probe"] = short
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", type=Path)
    parser.add_argument("--probe", type=Path, help="lines of the same rows with fewer epochs")
    given = parser.parse_args()
    for path in (given.lines, given.probe):
        if path is not None and not path.is_file():
            sys.exit(f"{path} is no file; python -m benchmarks.paper_tables writes it")
    probes = read(given.probe) if given.probe else {}
    for model, records in read(given.lines).items():
        print_choices(model, records, probes.get(model, {}))


def print_choices(model, records, probed):
    groups = families(records)
    if not groups:
        sys.exit(f"model {model}: no base has its row without the regularizer and one for every layer")
    for attack, title in TITLES.items():
        judged = {key: g for key, rows in groups.items() if (g := gains(records, key, rows, attack)) is not None}
        if not judged:
            continue
        picked, order, hits = defaultdict(lambda: defaultdict(list)), defaultdict(list), defaultdict(list)
        for (plain, seed), gain in judged.items():
            rules = rules_of(records, (plain, seed), groups[plain, seed], attack, probed)
            for rule, scores in rules.items():
                picked[rule][seed].append(gain[scores.argmax()])
                order[rule].append(spearman(scores, gain))
                hits[rule].append(scores.argmax() == gain.argmax())
            picked["mean over layers"][seed].append(gain.mean())
            picked["best in hindsight"][seed].append(gain.max())
        bases = len({plain for plain, _ in judged})
        print(
            f"\nModel {model}, {title}: {bases} bases, {len({seed for _, seed in judged})} seeds, {len(judged)} choices\n"
        )
        print_row(["rule", "R&G gained by the layer it picks", "picks the best", "rho"])
        print_row(["---"] * 4)
        for rule, seeds in picked.items():
            mean = spread([float(np.mean(values)) for values in seeds.values()])
            known = [one for one in order[rule] if one is not None]
            cells = [f"{sum(hits[rule])} of {len(hits[rule])}", f"{np.mean(known):+.2f}"] if known else ["", ""]
            print_row([rule, mean, *cells])


if __name__ == "__main__":
    main()
