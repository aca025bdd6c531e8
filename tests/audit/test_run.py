"""audit() from Python, on real networks."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from lsa_cli import AuditReport, audit
from lsa_cli.attacks import ATTACKS, Attack, Threat
from lsa_cli.auditing.evidence.preflight import empty_classes
from lsa_cli.auditing.execution import blocks
from lsa_cli.errors import DataError, LayerError, NumericalError, UsageError


@dataclass(frozen=True)
class Cheat(Attack):
    """Leaves its budget."""

    threat: Threat

    def perturb(self, model, x, y):
        return 1 - x


@dataclass(frozen=True)
class NotANumber(Attack):
    """Returns NaN for the first sample of a batch: of 120 samples, for one of 64 and one of 56."""

    threat: Threat

    def perturb(self, model, x, y):
        x = x.clone()
        x[0] = torch.nan
        return x


@pytest.fixture(scope="module", autouse=True)
def _misbehaving():
    """Registered for this file only: other files put every registered attack through their tables."""
    bad = {"test-cheat": Cheat, "test-nan": NotANumber}
    for name, attack in bad.items():
        ATTACKS.register(name)(attack)
    yield
    for name in bad:
        del ATTACKS._entries[name]


@pytest.fixture(scope="module")
def task():
    """Two blobs of 4 x 4 images that a small network with BatchNorm and dropout learns at once."""
    torch.manual_seed(0)
    y = torch.arange(120) % 3
    x = (0.3 * torch.rand(120, 1, 4, 4) + 0.2 * y[:, None, None, None]).clamp(0, 1)
    body = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(),
        nn.Linear(128, 16), nn.ReLU(), nn.Linear(16, 3),
    )  # fmt: skip
    optimizer = torch.optim.Adam(body.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(body(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    return body.eval(), x, y


def run(task, body=None, **options):
    network, x, y = task
    return audit(body or network, data=(x, y), **{"eps": 0.05, "noise": "gaussian", "threads": 1, **options})


def strip(report):
    """What must not depend on how the work was cut up."""
    content = report.model_dump(exclude={"created", "seconds", "protocol"})
    for outcome in content["outcomes"]:
        del outcome["seconds"]
    return content


def test_the_counts_of_a_report_add_up(task):
    report = run(task)
    assert isinstance(report, AuditReport)
    assert report.status == "complete"
    assert report.verdict.clean.value > 0.9
    for outcome in report.outcomes:
        assert sum(row.robust.count for row in outcome.classes) == outcome.robust.count
        assert sum(row.robust.n for row in outcome.classes) == outcome.robust.n == 120
        assert outcome.success.n == report.verdict.clean.count
        assert outcome.success.count + outcome.robust.count == report.verdict.clean.count
        assert sum(map(sum, outcome.confusion)) == report.verdict.clean.count
    budget = [outcome for outcome in report.outcomes if outcome.kind == "budget"]
    assert report.verdict.robust.count <= min(outcome.robust.count for outcome in budget)
    assert [o.name for o in budget] == ["fgsm", "pgd", "t-pgd"] == report.verdict.attacks
    assert AuditReport.model_validate_json(report.to_json()) == report


def test_the_network_is_bit_for_bit_as_it_was_and_a_training_network_gives_evaluation_results(task):
    body, _, _ = task
    evaluated = strip(run(task))
    body.train()
    body[1].eval()
    body[0].weight.requires_grad_(False)
    state = {name: tensor.clone() for name, tensor in body.state_dict().items()}
    modes = [module.training for module in body.modules()]
    try:
        trained = strip(run(task))
        assert all(torch.equal(tensor, state[name]) for name, tensor in body.state_dict().items())
        assert [module.training for module in body.modules()] == modes
        assert not body[0].weight.requires_grad
        assert body[5].weight.requires_grad
        assert all(parameter.grad is None for parameter in body.parameters())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in body.modules())
    finally:
        body.eval()
        body[0].weight.requires_grad_(True)
    assert trained == evaluated


def test_an_attack_of_many_candidates_at_once_gets_smaller_batches(task):
    body, x, y = task[:3]
    rows = []

    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = body

        def forward(self, inputs):
            rows.append(len(inputs))
            return self.body(inputs)

    audit(Counting(), data=(x, y), eps=0.01, attack="square:queries=40,at_once=8", noise="none", batch_size=16)
    assert (
        max(rows) == 48
    )  # six samples with eight candidates: three times the batch, as in other passes without gradients


@pytest.mark.parametrize("size", [7, 64])
def test_batch_size_changes_no_count(task, size):
    one, other = run(task, batch_size=120), run(task, batch_size=size)
    assert [o.robust for o in one.outcomes] == [o.robust for o in other.outcomes]
    assert [o.confusion for o in one.outcomes] == [o.confusion for o in other.outcomes]
    assert [o.layers.mvl for o in one.outcomes] == [o.layers.mvl for o in other.outcomes]
    for a, b in zip(one.outcomes, other.outcomes, strict=True):
        assert [r.mean for r in a.layers.rows] == pytest.approx([r.mean for r in b.layers.rows], rel=1e-3)


def test_seed_and_repetition(task):
    assert strip(run(task)) == strip(run(task))
    assert strip(run(task, seed=1)) != strip(run(task))


def test_the_curve_starts_at_clean_accuracy_and_never_rises(task):
    report = run(task, attack=["fgsm", "pgd"], eps_grid="0,0.02,0.05,0.1,0.2")
    for curve in report.curves:
        shares = [point.robust.value for point in curve.points]
        assert shares[0] == report.verdict.clean.value
        assert shares == sorted(shares, reverse=True)
        assert curve.score == pytest.approx(100 * sum(shares))
    at_eps = {c.attack: c.points[2].robust for c in report.curves}
    assert at_eps == {o.name: o.robust for o in report.outcomes if o.kind == "budget"}


def test_eps_zero_finds_nothing_and_moves_nothing(task):
    report = run(task, eps=0, noise="none")
    assert report.verdict.robust == report.verdict.clean
    assert all(row.mean == 0 for outcome in report.outcomes for row in outcome.layers.rows)


def test_an_attack_outside_its_budget_gains_nothing_and_is_told(task):
    report = run(task, attack="test-cheat", noise="none")
    assert report.outcomes[0].success.count == 0
    assert report.outcomes[0].discarded == 120
    assert "out-of-budget" in [warning.code for warning in report.warnings]


def test_an_attack_that_returns_nan_has_failed_there_and_is_told(task):
    report = run(task, attack="test-nan", noise="none", batch_size=64)
    assert report.outcomes[0].robust.count == report.verdict.clean.count
    (warning,) = [w for w in report.warnings if w.code == "attack-not-finite"]
    assert "2 perturbed inputs" in warning.message


class _Wrapped(nn.Module):
    def __init__(self, body, change):
        super().__init__()
        self.body, self.change = body, change

    def forward(self, x):
        return self.change(self.body(x))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda z: z * torch.nan, "NaN or infinite for 64 of 64"),
        (lambda z: torch.where(torch.arange(len(z))[:, None] == 0, torch.inf, z), "NaN or infinite"),
        (lambda z: z * 0 + torch.arange(3.0), "same output for all 64"),
        (lambda z: z.softmax(1), 'returns="probabilities"'),
        (lambda z: z.detach(), "no input gradient"),
    ],
)
def test_networks_that_cannot_carry_a_verdict_are_refused(task, change, says):
    with pytest.raises(NumericalError, match=says):
        run(task, _Wrapped(task[0], change), layers="body.*")


def test_outputs_in_containers_and_probabilities_give_the_same_counts(task):
    plain = run(task, noise="none").outcomes[1]

    class Output:
        def __init__(self, logits):
            self.logits = logits

    changes = {
        "tuple": lambda z: (z, "aux"),
        "dict": lambda z: {"features": z[:, :1], "logits": z},
        "object": Output,
        "trailing ones": lambda z: z[:, :, None, None],
    }
    for change in changes.values():
        other = run(task, _Wrapped(task[0], change), noise="none", layers="body.*").outcomes[1]
        assert other.robust == plain.robust
        assert other.confusion == plain.confusion
    softmax = _Wrapped(task[0], lambda z: z.double().softmax(1))
    other = run(task, softmax, noise="none", layers="body.*", returns="probabilities").outcomes[1]
    assert abs(other.robust.count - plain.robust.count) <= 1


def test_a_single_score_is_a_binary_head():
    torch.manual_seed(0)
    x = torch.rand(40, 1, 4, 4)
    body = nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 1))
    with torch.no_grad():
        score = body(x).squeeze(1)
        body[3].bias -= score.median()
        y = (body(x).squeeze(1) > 0).long()
    report = audit(body, data=(x, y), eps=0.1, noise="none", threads=1)
    assert report.verdict.clean.count == 40
    assert 0 < report.verdict.robust.count < 40
    assert report.subject.class_names == ["0", "1"]


def test_settings_that_nothing_uses_are_refused(task):
    with pytest.raises(UsageError, match=r"^steps: none of the attacks"):
        run(task, attack="fgsm", steps=5)
    with pytest.raises(UsageError, match="asked for twice"):
        run(task, attack=["pgd", "pgd"])
    with pytest.raises(UsageError, match="more samples than the 120"):
        run(task, limit=121)
    with pytest.raises(UsageError, match="larger than the whole input range"):
        run(task, eps=8)
    with pytest.raises(LayerError, match="did you mean"):
        run(task, layers="activation")
    with pytest.raises(UsageError, match="steps"):
        run(task, attack="pgd:stepz=3")


def test_data_that_does_not_fit_is_refused(task):
    body, x, y = task
    with pytest.raises(DataError, match="label 9, and the network has 3"):
        audit(body, data=(x, torch.where(y == 2, 9, y)))
    with pytest.raises(DataError, match="cannot take inputs of shape"):
        audit(body, data=(torch.rand(6, 1, 5, 5), torch.zeros(6, dtype=torch.long)))
    with pytest.raises(DataError, match="in colour"):
        audit(body, data=(torch.rand(6, 3, 4, 4), torch.zeros(6, dtype=torch.long)))
    with pytest.raises(DataError, match="sample 1 holds NaN"):
        audit(body, data=(torch.where(torch.arange(120)[:, None, None, None] == 1, torch.nan, x), y))
    with pytest.raises(DataError, match="outside"):
        audit(body, data=(4 * x - 2, y))
    with pytest.raises(DataError, match="divide by 255"):
        audit(body, data=(x * 255, y))


def test_inputs_just_outside_the_range_are_told_with_all_their_digits(task):
    body, x, y = task
    with pytest.raises(DataError, match=r"to 1\.0003, outside \[0, 1\]; clip them"):
        audit(body, data=(1.0003 * (x >= 0.5).float(), y))


def test_a_class_is_absent_from_the_data_or_from_the_audited_samples():
    names = ["a", "b", "c", "d"]
    told = [one.message for one in empty_classes(np.array([3, 0, 0, 1]), np.array([5, 0, 4, 2]), names)]
    assert told == [
        "1 of 4 classes have no sample in the data: b; nothing is known about them",
        "1 of 4 classes have no sample in the audited samples; raise --limit: c; nothing is known about them",
    ]


def test_an_empty_class_is_told_and_its_gate_is_undecided(task):
    body, x, y = task
    keep = y != 1
    report = audit(
        body, data=(x[keep], y[keep]), eps=0.01, noise="none", threads=1, gate={"class.min": 0, "clean": 0.1}
    )
    assert "empty-class" in [warning.code for warning in report.warnings]
    assert [gate.passed for gate in report.gates] == [False, True]
    assert report.verdict.classes[1].robust.value is None


def test_accuracy_near_chance_is_told(task):
    body, x, y = task
    shifted = audit(body, data=(x, (y + 1) % 3), eps=0.01, attack="fgsm", noise="none", threads=1)
    found = [finding.code for finding in shifted.evidence.findings]
    assert {"clean-accuracy-near-chance", "class-order"} <= set(found)
    assert shifted.evidence.verdict == "doubtful"
    assert "clean-accuracy-near-chance" not in [finding.code for finding in run(task).evidence.findings]


def test_a_network_that_rolls_dice_is_told(task):
    body, x, y = task

    class Dice(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = body

        def forward(self, x):
            return self.body(x) + 8 * torch.randn(len(x), 3)

    report = audit(Dice(), data=(x, y), eps=0.05, attack="fgsm", noise="none", layers="body.*", threads=1)
    assert report.outcomes[0].mismatches > 0
    assert "random-network" in [warning.code for warning in report.warnings]


def test_a_layer_that_sleeps_on_clean_inputs_has_no_measure_and_is_told():
    class Sleeper(nn.Module):
        def __init__(self):
            super().__init__()
            self.alarm, self.head = nn.ReLU(), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(x.flatten(1)) + self.alarm(x.flatten(1).abs().amax(1, keepdim=True) - 0.5)

    torch.manual_seed(0)
    x = 0.4 * torch.rand(30, 1, 2, 2)
    body = Sleeper()
    with torch.no_grad():
        y = body(x).argmax(1)
    report = audit(body, data=(x, y), eps=0.3, noise="none", threads=1)
    row = report.outcomes[0].layers.rows[0]
    assert row.undefined > 0
    assert "measure-undefined" in [warning.code for warning in report.warnings]
    assert np.isfinite(row.mean or 0.0)


class Rounded(nn.Module):
    """Sees its input in steps: right, and without a gradient."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return self.body((x * 64).round() / 64)


def test_a_network_without_gradients_is_not_called_robust_in_silence(task):
    honest = run(task, attack=["fgsm"])
    assert "zero-gradient" not in {warning.code for warning in honest.warnings}
    report = run(task, Rounded(task[0]), attack=["fgsm"])
    assert report.verdict.robust.value == report.verdict.clean.value, "blind, so it finds nothing"
    [warning] = [warning for warning in report.warnings if warning.code == "zero-gradient"]
    assert "120 of 120" in warning.message


class Detached(nn.Module):
    """Forgets its input's gradient, beside a tensor that keeps one of its own."""

    def __init__(self, body):
        super().__init__()
        self.body, self.scale = body, torch.ones(3, requires_grad=True)

    def forward(self, x):
        return self.body(x.detach()) * self.scale


def test_a_network_that_detaches_its_input_is_refused_by_gradient_attacks_and_judged_under_others(task):
    with pytest.raises(NumericalError, match="no input gradient"):
        run(task, Detached(task[0]), attack="fgsm")
    report = run(task, Detached(task[0]), attack="square:queries=20", noise="none", eps=0.1)
    assert report.verdict.robust.count < report.verdict.clean.count
    assert "zero-gradient" in {warning.code for warning in report.warnings}
    assert report.evidence.verdict == "doubtful"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_gpu_gives_the_verdict_of_the_cpu(task):
    on_cpu, on_gpu = (run(task, device=device, attack=["fgsm", "pgd"]) for device in ("cpu", "cuda"))
    assert on_gpu.verdict.clean.count == on_cpu.verdict.clean.count
    assert abs(on_gpu.verdict.robust.count - on_cpu.verdict.robust.count) <= 1
    for there, here in zip(on_gpu.outcomes, on_cpu.outcomes, strict=True):
        for a, b in zip(there.layers.rows, here.layers.rows, strict=True):
            assert a.mean == pytest.approx(b.mean, rel=0.02)


def test_data_that_is_no_pair_of_arrays_is_one_sentence(task):
    network, x, y = task
    assert run(task).data.n == audit(network, data=[x, y], eps=0.05, noise="gaussian", threads=1).data.n
    with pytest.raises(DataError, match="pairs"):
        audit(network, data=["a", "b"], eps=0.05)


class Augmented(Dataset):
    """Images as training sees them: each read adds other noise."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, row):
        return (self.x[row] + 0.01 * torch.rand_like(self.x[row])).clamp(0, 1), int(self.y[row])


def test_data_that_change_at_each_read_are_refused(task):
    network, x, y = task
    with pytest.raises(DataError, match="another one each time it is read"):
        audit(network, data=Augmented(x, y), eps=0.05, threads=1)


def test_copies_among_the_samples_are_counted(task):
    network, x, y = task
    once, twice = (
        audit(network, data=(x, y), eps=0.05, threads=1),
        audit(network, data=(torch.cat([x, x[:30]]), torch.cat([y, y[:30]])), eps=0.05, threads=1),
    )
    assert "repeated-samples" not in [one.code for one in once.warnings]
    (told,) = [one.message for one in twice.warnings if one.code == "repeated-samples"]
    assert told.startswith(f"30 of {len(x) + 30} samples are copies of others")


def test_blocks_take_each_sample_once_and_a_stop_loses_half_at_most():
    for batch_size, count in ((256, 3000), (16, 700), (100, 65), (1, 10)):
        plan = SimpleNamespace(batch_size=batch_size, whole_batch=False)
        taken = list(blocks(plan, np.random.default_rng(0).permutation(count)))
        assert np.array_equal(np.sort(np.concatenate(taken)), np.arange(count))
        before = np.cumsum([0, *map(len, taken)])
        for number, block in enumerate(taken):
            assert len(block) <= max(64, before[number])
            assert len(block) <= max(64, 4 * batch_size)
        if batch_size == 256:  # full batches as soon as that loses no more
            assert [len(block) for block in taken[:-1]] == [64, 64, 128, *[256] * 7, 512]
