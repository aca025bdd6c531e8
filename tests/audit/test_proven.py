"""The proven lower bound in an audit: it never exceeds what attacks leave, saves attacks, and a contradiction ends the run."""

import dataclasses

import numpy as np
import pytest
import torch
import typer
from torch import nn

from lsa_cli import audit
from lsa_cli.attacks.ranked import Round, by_rank, lots
from lsa_cli.attacks.threat import make_threat
from lsa_cli.auditing import limits
from lsa_cli.auditing.contradiction import Contradiction, refuse_contradictions
from lsa_cli.auditing.cost import measure_speed
from lsa_cli.auditing.early import decide_early
from lsa_cli.auditing.evidence.probe import Probe
from lsa_cli.auditing.journal import Journal
from lsa_cli.auditing.plan import make_plan
from lsa_cli.auditing.proof import SHARE
from lsa_cli.auditing.proving import measured
from lsa_cli.auditing.run import run_audit
from lsa_cli.cli.boundary import boundary
from lsa_cli.errors import EXIT_BROKEN, UsageError
from lsa_cli.proofs import NotProvable
from lsa_cli.report import by_sample, view
from lsa_cli.report.storage import read_report
from lsa_cli.report.text import between, percent
from lsa_cli.settings import settings_from
from tests.cli.conftest import lsa  # noqa: F401  a fixture
from tests.fitting import fitted

FOREIGN = "tests/foreign_networks.py"
CASCADE = ["pgd:steps=3", "ranked-cascade"]


@pytest.fixture(scope="module")
def task():
    torch.manual_seed(0)
    x = torch.rand(150, 1, 6, 6)
    y = ((x - 0.5).flatten(1) @ torch.randn(36, 4)).argmax(1)
    body = nn.Sequential(nn.Flatten(), nn.Linear(36, 24), nn.ReLU(), nn.Linear(24, 4))
    return fitted(body, x, y, 150), x, y


def given(**options):
    return {"eps": 0.03, "noise": "none", "threads": 1, "attack": CASCADE, **options}


def plan_of(task, **options):
    body, x, y = task
    return make_plan(body, settings_from(given(**options)), {}, (x, y))


def run(task, **options):
    body, x, y = task
    return audit(body, data=(x, y), **given(**options))


@pytest.fixture(scope="module")
def report(task):
    return run(task, prove=True)


@pytest.fixture(scope="module")
def plain(task):
    return run(task)


def agrees(report):
    """The column of samples and the verdict say the same, and no attack breaks what is proven."""
    verdict, samples = report.verdict, report.samples
    assert verdict.proven.count == sum(samples.proven)
    assert verdict.proven.n == verdict.robust.n == len(samples.proven)
    assert verdict.proven.count <= verdict.robust.count
    robust, everywhere = (
        by_sample.robust(samples),
        [by_sample.under(samples, outcome.name) for outcome in report.outcomes],
    )
    for place, proven in enumerate(samples.proven):
        assert not proven or (robust[place] and all(flags[place] for flags in everywhere))
    assert f"{verdict.proven.count} of {verdict.proven.n} samples are proven" in verdict.statement
    assert sum(row.proven.count for row in verdict.classes) == verdict.proven.count
    assert all(row.proven.n == row.robust.n and row.proven.count <= row.robust.count for row in verdict.classes)
    return True


def test_the_verdict_lies_between_what_is_proven_and_what_is_attacked(report):
    assert agrees(report)
    assert 0 < report.verdict.proven.count < report.verdict.clean.count
    proven, turned = report.verdict.proven.count, report.verdict.clean.count - report.verdict.robust.count
    assert f"at least {turned} can be turned" in report.verdict.meaning
    assert f"{proven} provably cannot be turned" in report.verdict.meaning


def test_the_table_of_classes_has_what_is_proven_of_each(report, plain):
    names = report.subject.class_names
    expected = dict.fromkeys(names, 0)
    for label, proven in zip(report.samples.label, report.samples.proven, strict=True):
        expected[names[label]] += proven
    assert {row.name: row.proven.count for row in report.verdict.classes} == expected
    table = view.classes(report)
    place = [column.title for column in table.columns].index("proven")
    shown = {row.name: percent(row.proven.value) for row in report.verdict.classes}
    assert {row[0]: row[place] for row in table.rows} == shown
    assert "proven" not in [column.title for column in view.classes(plain).columns]
    assert all(row.proven is None for row in plain.verdict.classes)


def test_an_affine_network_is_decided_exactly(task):
    """For it the bound is the margin at the worst corner of the ball, so every sample is either proven or broken by FGSM."""
    _, x, y = task
    body = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    x = 0.3 + 0.4 * x
    body[1].bias.data = -body[1].weight.detach().sum(1) / 2  # both classes are equal at a grey image
    y = body(x).argmax(1)
    found = audit(body, data=(x, y), **given(attack=["fgsm"], layers="none", eps=0.01, prove=True))
    assert agrees(found)
    assert found.verdict.proven.count == found.verdict.robust.count
    assert 0 < found.verdict.proven.count < len(y)
    assert found.verdict.meaning.endswith("no other is left")


def test_the_cascade_attacks_no_sample_that_is_proven_and_the_scan_all(task, report, plain):
    left = report.outcomes[0].robust.count - report.verdict.proven.count
    assert report.cascade[0].tried == left < plain.cascade[0].tried
    assert report.outcomes == [
        one.model_copy(update={"seconds": other.seconds})
        for one, other in zip(plain.outcomes, report.outcomes, strict=True)
    ]
    assert report.verdict.robust == plain.verdict.robust
    assert [row.model_copy(update={"proven": None}) for row in report.verdict.classes] == plain.verdict.classes
    assert (
        f"Of the {report.verdict.robust.count - report.verdict.proven.count} that are still robust and not proven"
        in (report.verdict.statement)
    )


def test_a_round_reaches_as_many_of_the_nearest_as_without_a_proof():
    """A proof takes samples far from the boundary out, and the shares of the rounds still count them."""
    margin, lot = -np.arange(100.0), lots(0, torch.arange(100))

    def first(margin, others):
        (met,) = by_rank([Round("one", None, share=0.2)], margin, lot, lambda number, rows: margin[rows], others)
        return met.first

    assert first(margin.copy(), 0) == 20
    assert first(np.where(np.arange(100) < 60, margin, np.nan), 40) == 20
    assert first(np.where(np.arange(100) < 10, margin, np.nan), 90) == 10


def test_an_estimate_counts_what_is_proven_as_robust(task, report):
    everything = run(task, prove=True, full_on=150)
    assert everything.verdict.estimate.value == everything.verdict.robust.value == report.verdict.robust.value
    assert everything.verdict.estimate.survivors == report.outcomes[0].robust.count - report.verdict.proven.count
    part = run(task, prove=True, full_on=10).verdict
    assert part.estimate.checked == min(10, part.estimate.survivors)
    assert part.estimate.low <= report.verdict.robust.value <= part.estimate.high


def test_without_an_attack_the_proven_share_is_the_verdict(task):
    verdict = run(task, prove=True, attack="none", layers="none").verdict
    assert (verdict.robust, verdict.proven.count > 0) == (None, True)
    assert "no upper bound of the robust accuracy is known" in verdict.statement


# ---- what is refused, and what is left out ------------------------------------------------------------------


class Noisy(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return self.body(x + 0.1 * torch.randn_like(x))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"norm": "l1", "eps": 1, "attack": ["pgd"]}, "nothing is proven in l1, only in linf and l2"),
        ({"attack": ["pgd", "pgd:norm=l2,eps=1"]}, "the attacks are in l2 and linf, and a proof is in one norm"),
    ],
)
def test_a_threat_model_that_cannot_be_proven_is_refused(task, options, says):
    with pytest.raises(NotProvable, match=says):
        plan_of(task, prove=True, **options)


def test_a_network_that_cannot_be_proven_is_refused_and_left_out_where_nobody_asked(task):
    body, x, y = task
    with pytest.raises(NotProvable, match="stochastic"):
        plan_of((Noisy(body), x, y), prove=True)
    curved = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 4))
    way_out = r"'tanh' has no bound; .*; it is first computed in 2 \(Tanh\); leave out --prove: the attacks of an audit need no"
    with pytest.raises(UsageError, match=way_out):
        plan_of((curved, x, y), prove=True)
    proof = audit(curved, data=(x, y), full=True, eps=0.02, noise="none", threads=1, limit=32).verdict.proof
    assert proof.robust is None
    assert "tanh" in proof.left_out.lower()


def test_the_proof_covers_the_largest_radius_of_the_attacks(task):
    plan = plan_of(task, prove=True, attack=["pgd", "pgd:eps=0.04"])
    assert (plan.threat.eps, plan.proof.threat.eps, plan.proof.within) == (0.03, 0.04, "linf 0.04")


def test_who_asks_for_a_proof(task):
    asked = {"attack": None, "limit": 32}
    assert plan_of(task).proof is None
    assert plan_of(task, prove=True).proof.is_asked
    full = settings_from({"eps": 0.02, "noise": "none", "threads": 1, "full": True})
    body, x, y = task
    plan = make_plan(body, full, {}, (x, y))
    assert not plan.proof.is_asked
    assert make_plan(body, full.replace(prove=False), {}, (x, y)).proof is None
    # Its cost in passes decides: the same proof is left out where a pass of the network is said to cost next to nothing.
    speed = measure_speed(plan)
    assert measured(plan, dataclasses.replace(speed, each=1e9)).prover is not None
    left_out = measured(plan, dataclasses.replace(speed, each=1e-9))
    assert left_out.prover is None
    assert f"at most {SHARE:g}" in left_out.left_out
    assert measured(plan_of(task, prove=True, **asked), dataclasses.replace(speed, each=1e-9)).prover is not None


def test_a_limit_on_what_is_proven_needs_the_option(task):
    with pytest.raises(UsageError, match="the limit proven needs a proof: add --prove"):
        plan_of(task, gate={"proven": 0.1})
    gates = run(task, prove=True, fail_under={"proven": 0.01}).gates
    assert [gate.state for gate in gates] == ["held"]


# ---- other ways to run -------------------------------------------------------------------------------------


def test_gate_only_decides_what_is_proven(task, report):
    """All samples are needed where the limit is the rate itself, and no attack runs for a limit on it alone."""
    share = report.verdict.proven.value
    plan = plan_of(task, prove=True, attack=["pgd:steps=3"], layers=None, gate_only=True, gate={"proven": share})
    found = decide_early(plan)
    assert (found.gates[0].measured, found.gates[0].state, found.verdict.attacks) == (share, "held", [])
    both = {"proven": share, "robust": report.outcomes[0].robust.value}
    found = decide_early(plan_of(task, prove=True, attack=["pgd:steps=3"], gate_only=True, gate=both))
    assert [gate.measured for gate in found.gates] == [share, report.outcomes[0].robust.value]
    assert agrees(found)
    low, high = percent(share), percent(report.outcomes[0].robust.value)
    assert between(found.verdict).startswith(f"robust between {low} (proven) and {high} (attacked)")
    assert found.cascade[0].tried == found.verdict.clean.count - found.verdict.proven.count
    assert found.verdict.proven == report.verdict.proven  # all samples are taken


def test_an_audit_resumes_with_its_proof_and_results_do_not_depend_on_blocks(task, report, tmp_path):
    plan = plan_of(task, prove=True)
    journal = Journal(tmp_path / "j", {}, resume=False)
    put = journal.put

    def until(stage, count, arrays):
        put(stage, count, arrays)
        if stage.startswith("block"):
            raise KeyboardInterrupt

    journal.put = until
    with pytest.raises(KeyboardInterrupt):
        run_audit(plan, journal=journal)
    journal.close()
    again = run_audit(plan, journal=Journal(tmp_path / "j", {}, resume=True))
    assert again.samples == report.samples
    assert run(task, prove=True, batch_size=7).samples.proven == report.samples.proven


def test_a_budget_that_ends_in_the_proof_says_that_nothing_was_proven(task, monkeypatch):
    plan = plan_of(task, prove=True, budget="1h")
    late, running = limits.Clock.is_late, []
    monkeypatch.setattr(limits.Clock, "is_late", lambda clock: "proof" in running or late(clock))
    found = run_audit(plan, progress=lambda what, done, total: running.append(what))
    assert found.verdict.proven is None
    assert "the time budget" in found.verdict.proof.left_out


def test_a_dry_run_shows_the_proof(lsa, samples):  # noqa: F811
    done = lsa("audit", samples / "mnist_cnn_at.pt", "--prove", "-n", 4, "--eps", 0.02, "--dry-run")
    assert done.code == 0
    assert "within linf 0.02" in next(line for line in done.out.splitlines() if line.startswith("proof"))


# ---- contradictions -----------------------------------------------------------------------------------------


def test_a_sample_that_is_proven_and_broken_ends_the_run(task, tmp_path):
    """A journal whose proofs are all positive stands for a prover that errs."""
    plan = plan_of(task, prove=True)
    journal = Journal(tmp_path / "j", {}, resume=False)
    run_audit(plan, journal=journal)
    stage = "block-rank0"
    arrays = journal.get(stage, 0)
    broken = (arrays["clean"] == arrays["label"]) & (arrays["attacks.0.predicted"] != arrays["label"])
    assert broken.any()
    assert not arrays["proof.proven"][broken].any()
    journal.put(stage, 0, {**arrays, "proof.proven": np.ones_like(broken)})
    journal.close()
    first = arrays["index"][broken][0]
    failed = []
    with pytest.raises(Contradiction, match=rf"^sample {first} .*is proven robust within linf 0.03, and pgd breaks it"):
        run_audit(plan, journal=Journal(tmp_path / "j", {}, resume=True), on_update=failed.append)
    assert failed[-1].status == "failed"


def test_a_contradiction_is_a_bug_of_lsa(capsys):
    index, yes = np.array([7, 9]), np.array([True, True])
    refuse_contradictions(index, yes, ~yes, "pgd", "linf 0.1")
    with pytest.raises(typer.Exit) as end, boundary():
        refuse_contradictions(index, yes, yes, "pgd", "linf 0.1")
    assert end.value.exit_code == EXIT_BROKEN
    told = capsys.readouterr().err
    assert "this is a bug in lsa: Contradiction: sample 7 (and 1 more) is proven robust within linf 0.1" in told


def test_an_attack_of_the_evidence_contradicts_too_and_only_within_the_budget():
    x, y = torch.tensor([[0.4], [0.4]]), torch.tensor([0, 0])
    probe = Probe(
        lambda x: torch.cat([0.5 - x, x - 0.5], 1), x, y, torch.tensor([3, 4]), make_threat("linf", 0.2), proven=torch.tensor([False, True])
    )  # fmt: skip
    assert (probe.margin(x) < 0).all()
    assert probe.margin(torch.tensor([[0.55], [0.45]])).tolist() == pytest.approx([0.1, -0.1])
    assert (probe.margin(torch.tensor([[0.7], [0.7]])) > 0).all()
    with pytest.raises(
        Contradiction, match=r"sample 4 is proven robust within linf 0.2, and an attack of the evidence breaks it"
    ):
        probe.margin(torch.tensor([[0.55], [0.55]]))
    assert probe.select(torch.tensor([True, False])).margin(torch.tensor([[0.55]])) > 0


# ---- real networks ------------------------------------------------------------------------------------------


def test_full_with_a_proof_on_a_sample_network(lsa, samples, tmp_path):  # noqa: F811
    done = lsa(
        "audit", samples / "mnist_cnn_at.pt", "--full", "--prove", "-n", 3, "--eps", 0.01, "--noise", "none",
        "--fail-under", "proven=0.05", "--samples", tmp_path / "s.csv",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "attacked)" in done.out
    header, *rows = (tmp_path / "s.csv").read_text().splitlines()
    column = header.split(",").index("proven")
    report = read_report(tmp_path / "mnist_cnn_at.audit.json")
    assert agrees(report)
    assert report.verdict.proven.count > 0
    assert [row.split(",")[column] == "True" for row in rows] == report.samples.proven


@pytest.mark.parametrize("file", ["convex_adversarial/fashion_mnist.pth", "fast_adversarial/fgsm.pth"])
def test_shared_networks_never_prove_what_attacks_break(data_root, file):
    data = "FashionMNIST" if "fashion" in file else "MNIST"
    report = audit(
        data_root / "checkpoints" / file, arch=f"{FOREIGN}:small_cnn", normalize="none", eps=0.1 if data != "MNIST" else 0.02,
        data=f"torchvision:{data}?root={data_root}", limit=16, prove=True, noise="none", threads=1,
    )  # fmt: skip
    assert agrees(report)
    assert report.verdict.proven.count > 0
