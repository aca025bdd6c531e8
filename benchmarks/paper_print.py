"""The tables that benchmarks.paper_tables prints, from its records."""

import statistics

import numpy as np

from benchmarks.published import MVL, PUBLISHED, READ_OFF, parse_row, robustness_and_generalisation

SCANS = ("fgsm", "pgd")  # attacks that every network is judged by, and under which layers are compared
TITLES = {"fgsm": "FGSM", "pgd": "PGD-50", "cascade": "AutoAttack"}


def spread(values, digits=1):
    """Mean and, of several values, their standard deviation (divisor n - 1)."""
    text = f"{statistics.mean(values):.{digits}f}"
    return text if len(values) == 1 else f"{text} ± {statistics.stdev(values):.{digits}f}"


def gains(found, plain, attack):
    """R&G of each seed less that of the row without the regularizer with the same seed."""
    scores = {r["settings"]["seed"]: robustness_and_generalisation(r[attack]) for r in plain if attack in r}
    own = {r["settings"]["seed"]: robustness_and_generalisation(r[attack]) for r in found}
    return [score - scores[seed] for seed, score in own.items() if seed in scores]


def print_tables(study, names, records):
    by_row = {name: [r for r in records if r["settings"]["row"] == name] for name in names}
    grid = [f"{eps:g}" for eps in study.grid]
    for attack in TITLES:
        shown = {name: [r for r in found if attack in r] for name, found in by_row.items()}
        if not any(shown.values()):
            continue
        columns = [*grid, "R&G"]
        if attack == "fgsm":
            columns = [c for column in columns for c in (column, "paper")]
        count = study.judged[attack]
        print(
            f"\nModel {study.model}, {TITLES[attack]}, {'all test samples' if count is None else f'{count} test samples'}\n"
        )
        print_row(["row", "eps", "gamma", "seeds", *columns, "R&G less that of its AT row"])
        print_row(["---"] * (5 + len(columns)))
        for name, found in shown.items():
            if not found:
                continue
            curves = [[*r[attack], robustness_and_generalisation(r[attack])] for r in found]
            cells = [spread(values) for values in zip(*curves, strict=True)]
            if attack == "fgsm":
                paper = [f"{p:g}" for p in PUBLISHED.get((study.model, name), ())] or [""] * len(cells)
                cells = [cell for pair in zip(cells, paper, strict=True) for cell in pair]
            plain = parse_row(name).plain
            gained = [] if plain == name else gains(found, by_row.get(plain, []), attack)
            print_row([*_described(name, found), *cells, spread(gained) if gained else ""])
    for attack in SCANS:
        count = max(len(found[0]["layers"][attack]) for found in by_row.values())
        print(f"\nModel {study.model}, mean relative error by layer, {TITLES[attack]} at {study.scan_eps:g}; the paper's MVL is L{MVL[study.model]}\n")  # fmt: skip
        print_row(["row", "eps", "gamma", "seeds", *(f"L{i}" for i in range(count)), "MVL (top 1), by seed"])
        print_row(["---"] * (5 + count))
        for name, found in by_row.items():
            curves = [r["layers"][attack] for r in found]
            tops = " ".join(f"L{int(np.argmax(curve))}" for curve in curves)
            print_row([*_described(name, found), *(spread(values, 2) for values in zip(*curves, strict=True)), tops])
        if (study.model, attack) in READ_OFF:
            curve = READ_OFF[study.model, attack]
            print_row(
                ["Normal, off the paper's plot", "?", "", "", *(f"{one:g}" for one in curve), f"L{np.argmax(curve)}"]
            )


def _described(name, found):
    settings = found[0]["settings"]
    gamma = settings["gamma"]
    return [name, f"{settings['eps']:.3g}", "" if gamma is None else f"{gamma:g}", str(len(found))]


def print_row(cells):
    print("| " + " | ".join(cells) + " |", flush=True)
