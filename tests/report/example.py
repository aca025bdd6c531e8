"""A small report made by hand, for renderers and the gate."""

from lsa_cli.report.protocol import Data, Protocol, Subject, ThreatModel
from lsa_cli.report.row import Proof, Rate
from lsa_cli.report.schema import (
    AttackOutcome,
    AttackPair,
    AuditReport,
    ClassRow,
    ClassSummary,
    Curve,
    CurvePoint,
    Distance,
    LayerAnalysis,
    LayerRow,
    Metric,
    Verdict,
    Warning,
)


def rate(count, n):
    if n == 0:
        return Rate(count=0, n=0, value=None, low=None, high=None)
    value = count / n
    return Rate(count=count, n=n, value=value, low=max(0.0, value - 0.05), high=min(1.0, value + 0.05))


def layer(name, mean, in_mvl):
    low, high = (None, None) if mean is None else (mean - 0.01, mean + 0.01)
    return LayerRow(
        name=name, kind="ReLU", shape=[4], mean=mean, sd=0.1, low=low, high=high, gain=1.2, amplification=2.5,
        stability=1.0 if in_mvl else 0.0, in_mvl=in_mvl, undefined=0 if mean is not None else 100,
    )  # fmt: skip


def summary(rows):
    values = [row.robust.value for row in rows if row.robust.value is not None]
    worst = min((row for row in rows if row.robust.value is not None), key=lambda row: row.robust.value)
    return ClassSummary(
        worst_class=worst.name, worst=worst.robust.value, mean=sum(values) / len(values),
        max_discrepancy=max(values) - min(values), variance=0.01, sd=0.1, nsd=0.33, weight_norm_correlation=None,
    )  # fmt: skip


def proven(row):
    return row.model_copy(update={"proven": rate(int(0.85 * row.robust.count), row.robust.n)})


def outcome(name, kind, robust, means, rows, names):
    layers = [
        layer(layer_name, mean, i == 1)
        for i, (layer_name, mean) in enumerate(zip(("relu1", "relu2"), means, strict=True))
    ]
    return AttackOutcome(
        name=name, kind=kind, spec=name, settings={"norm": "linf", "eps": 0.3} if kind == "budget" else {"std": 0.1},
        robust=rate(robust, 100), success=rate(90 - robust, 90),
        distance=Distance(norm="linf", n=90 - robust, mean=0.3, median=0.3, largest=0.3), seconds=1.5,
        layers=LayerAnalysis(
            rows=layers, mvl=["relu2"], mvl_rule="mean - mu > 0.5 sigma (sigma over samples x layers)", mu=0.65,
            sigma=0.2, observations=100, input_error=0.6, by_class=[[mean] * len(names) for mean in means],
            mvl_by_class=[["relu2"]] * len(names),
        ),
        classes=rows, class_summary=summary(rows),
        confusion=[[int(i == j) * 10 + 1 for j in range(len(names))] for i in range(len(names))], mismatches=0, discarded=0,
    )  # fmt: skip


def example(status="complete", budget=True, empty_class=False, blind_layer=False, names=("cat", "dog"), **changes):
    """A report of two classes (or `names`), two layers, two attacks and a noise."""
    cat = rate(0, 0) if empty_class else rate(10, 50)
    rows = [ClassRow(name=names[0], clean=cat, robust=cat, target=names[-1], concentration=0.75)]
    rows += [
        ClassRow(name=name, clean=rate(45, 50), robust=rate(20, 50), target=None, concentration=None)
        for name in names[1:]
    ]
    first = None if blind_layer else 0.5
    outcomes = [outcome("gaussian", "noise", 90, (0.1, 0.9), rows, names)]
    if budget:
        outcomes = [
            outcome("fgsm", "budget", 50, (first, 0.7), rows, names),
            outcome("pgd", "budget", 30, (first, 0.8), rows, names),
            *outcomes,
        ]
    report = AuditReport(
        tool="lsa 0.1.0", status=status, created="2026-11-21T00:00:00+00:00", seconds=12.3,
        subject=Subject(
            checkpoint="models/example.pt", sha256="ab" * 32, size=1234, format="torch-zip",
            architecture="lsa:mnist-cnn", parameters=123_222, mean=[0.1307], std=[0.3081], input_shape=[1, 28, 28],
            input_range=(0.0, 1.0), output="logits", class_names=list(names), notes=["prefix 'module.' removed"],
        ),
        data=Data(
            source="npz:mnist.npz", split="test", transform="none", n=100, available=1000,
            selection="stratified by class, seed 0", fingerprint="cd" * 32,
        ),
        protocol=Protocol(
            threat=ThreatModel(norm="linf", eps=0.3, text="0.3", origin="the checkpoint"), attacks=["fgsm", "pgd"],
            noises=["gaussian"], layers=["activations"], measure="relative-error", aggregate="sample", eta=0.5,
            sigma="samples", top_k=None, seed=0, batch_size=256, device="cpu (x86_64)", threads=2,
            settings={"eps": 0.3}, settings_from={"eps": "the checkpoint"}, versions={"torch": "2.15.0"},
        ),
        verdict=Verdict(
            clean=rate(90, 100), robust=rate(30, 100) if budget else None, attacks=["fgsm", "pgd"] if budget else [],
            classes=[proven(row) for row in rows] if budget else [], class_summary=summary(rows) if budget else None,
            proof=Proof(robust=rate(25, 100), threat="linf 0.3", seconds=4.5) if budget else None,
            meaning=(
                "of 90 images that are classified correctly, at least 60 can be turned within linf 0.3, and 25 provably cannot be turned; "
                "whether the other 5 can is not known"
            ),
            statement="30 of 100 samples are classified correctly, clean and under the worst of fgsm, pgd (linf 0.3).",
        ),
        outcomes=outcomes,
        pairs=[AttackPair(weaker="fgsm", stronger="pgd", spearman=None, gain=20, gain_on_weak_classes=0.6)] if budget else [],
        curves=[Curve(attack="pgd", points=[CurvePoint(eps=0, robust=rate(90, 100)), CurvePoint(eps=0.3, robust=rate(30, 100))], score=120.0)],
        metrics=[Metric(name="intensity", n=100, value=3.0, unit="ratio", quantiles={"mean": 2.5, "0.5": None}, attack="pgd", meaning="how far gradients grow")] if budget else [],
        warnings=[Warning(code="verdict-mismatch", message="pgd: 2 predictions changed")],
    )  # fmt: skip
    return report.model_copy(update=changes)
