"""RiFT: the module criticality, what trains, and how far the weights are interpolated."""

import numpy as np
import pytest
import torch

from lsa_cli.attacks import make_threat
from lsa_cli.errors import UsageError
from lsa_cli.hardening.rift import interpolated, robust_criticality
from lsa_cli.hardening.validation import validation_of
from lsa_cli.hardening.weights import weights_of
from lsa_cli.models.checkpoint import read_checkpoint
from lsa_cli.models.classifier import Classifier
from lsa_cli.stats import not_inferior
from tests.cli.conftest import ROOT, lsa, refused  # noqa: F401  fixtures
from tests.hardening.conftest import make_job, make_method, recipe, run, same, small_network

MOON = ROOT / "sample_models" / "moon_mlp.pt"


def linear(weight):
    """Logits (0, w . x)."""
    layer = torch.nn.Linear(len(weight), 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([torch.zeros(len(weight)), torch.tensor(weight)]))
    return Classifier(torch.nn.Sequential(layer)), layer


def test_the_criticality_of_a_linear_layer_on_one_sample_is_its_closed_form():
    """The loss log(1 + exp(-z)), z = (w1 - w0) . x, rises most along -x for w1 and x for w0: z falls by r sqrt(2) ||x||."""
    model, layer = linear([3.0, 4.0])
    x, y = torch.tensor([[0.6, 0.2]]), torch.tensor([1])
    z, radius = 3.0 * 0.6 + 4.0 * 0.2, 0.1 * 5.0
    lowest = z - radius * np.sqrt(2) * float(x.norm())
    expected = np.log1p(np.exp(-lowest)) - np.log1p(np.exp(-z))
    before = weights_of(model)
    assert robust_criticality(model, [layer.weight], [(x, y)]) == pytest.approx(expected, rel=1e-5)
    assert same(before, weights_of(model))


def test_the_criticality_is_never_negative_and_no_batch_size_changes_it():
    model, generator = small_network(), torch.Generator().manual_seed(1)
    x, y = torch.rand(12, 1, 8, 8, generator=generator), torch.arange(12) % 3
    for layer in (model.body[0], model.body[5], model.body[7]):
        whole = robust_criticality(model, [layer.weight], [(x, y)])
        parts = robust_criticality(model, [layer.weight], [(x[:5], y[:5]), (x[5:], y[5:])])
        assert whole > 0
        assert parts == pytest.approx(whole, rel=1e-3)


def test_a_layer_that_nothing_depends_on_is_chosen(tmp_path):
    """Class 1 is decided by the first layer alone: the second one adds its output times zero."""

    class Idle(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = torch.nn.Linear(64, 3), torch.nn.Linear(64, 3)

        def forward(self, x):
            return self.used(x.flatten(1)) + 0.0 * self.idle(x.flatten(1))

    from lsa_cli.hardening.sites import layers_of

    torch.manual_seed(0)
    model = Classifier(Idle())
    method = make_method("rift", {"margin": "0.2"}, layers=(), threat=make_threat("linf", 1e-6))
    held_out = list(validation_of(make_job(tmp_path, method, model)))
    said = []
    assert method.choose(model, layers_of(model, held_out[0].x[:2]), held_out, said.append) == ("idle",)
    assert "idle 0" in said[0]


def test_a_network_that_is_not_robust_is_refused(tmp_path):
    from lsa_cli.hardening.sites import layers_of

    model, method = small_network(), make_method("rift", {"margin": "0.2"}, layers=(), threat=make_threat("linf", 0.5))
    held_out = list(validation_of(make_job(tmp_path, method, model)))
    with pytest.raises(UsageError, match="resists PGD on 3 of 24 held-out samples: train it with --method at before"):
        method.choose(model, layers_of(model, held_out[0].x[:2]), held_out, print)


@pytest.mark.parametrize(("margin", "moves"), [(0.9, True), (1e-5, False)])
def test_the_weights_move_only_as_far_as_the_test_against_the_margin_allows(margin, moves, tmp_path):
    """Training raises clean accuracy. A margin that 24 held-out samples cannot exclude leaves the network as it was."""
    method, model = make_method("rift", {"margin": str(margin)}, layers=(), held_out=10**6), small_network()
    method.prepare(model)
    before = weights_of(model)
    job = make_job(tmp_path, method, model, recipe=recipe(epochs=5))
    after = run(job).last
    model.load_state_dict(after)
    said = method.finish(model.eval(), validation_of(job))
    share = method.findings["interpolation"]
    assert (share > 0) == moves
    assert f"{share:.0%} of the way" in said
    assert method.takes_nothing == (not moves)
    assert same(weights_of(model), interpolated(before, after, share))


def test_the_test_against_a_margin_keeps_its_error():
    """At a true fall of exactly the margin it passes in at most about 5% of trials, and without a fall mostly."""
    generator, n, margin = np.random.default_rng(0), 1000, 0.02

    def passed(lost, gained):
        draws = generator.multinomial(n, [lost, gained, 1 - lost - gained], 4000)
        return np.mean([not_inferior(int(a), int(b), n, margin) <= 0.05 for a, b, _ in draws])

    assert all(passed(q + margin, q) < 0.065 for q in (0.0, 0.005, 0.02, 0.1))
    assert passed(0.004, 0.004) > 0.95
    assert not_inferior(0, 0, 10, 0.01) > 0.05


def test_only_the_named_layer_moves_and_the_file_says_how_far(lsa):  # noqa: F811
    command = ("harden", MOON, "-o", "h.pt", "--method", "rift:margin=0.2", "--epochs", 2, "--threads", 1, "-n", 40)
    result = lsa(*command)
    assert result.code == 0, result.err
    assert "the least critical layer" in result.err
    entry = read_checkpoint("h.pt").description.history[-1]
    last, first = (torch.load(path, weights_only=True)["state_dict"] for path in ("h.last.pt", MOON))
    moved = [name for name, tensor in last.items() if not torch.equal(tensor, first[name])]
    assert {name.rpartition(".")[0] for name in moved} == set(entry["layers"])
    assert len(entry["layers"]) == 1
    assert 0 <= entry["interpolation"] <= 1
    named = lsa(*command, "--layers", "fc2")
    assert read_checkpoint("h.pt").description.history[-1]["layers"] == ["fc2"], named.err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--method", "rift:margin=0.2", "--steps", "3"), "--steps: rift trains on clean samples; leave it out"),
        (("--method", "rift:margin=0.2", "--hold", "first"), "--hold: rift chooses layers by a rule of its own"),
        (
            ("--method", "rift:margin=0.2", "--train-only", "all"),
            "--train-only: rift chooses layers by a rule of its own",
        ),
        (
            ("--method", "rift"),
            "rift: 160 held-out samples cannot exclude a fall of robust accuracy by 0.01, even if none changes; give",
        ),
        (("--method", "rift:margin=2"), "rift: margin=2 must be above 0 and below 1"),
        (("--method", "rift:margin=0.2", "--gamma", "1"), "rift has none"),
    ],
)
def test_what_it_does_not_use_is_refused(refused, options, says):  # noqa: F811
    refused("harden", MOON, *options, says=says)


def test_a_margin_of_nothing_is_refused():
    with pytest.raises(UsageError, match="margin"):
        make_method("rift", {"margin": "0"}, layers=())
