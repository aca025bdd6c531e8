"""An attack must find adversarial examples that are known to exist; where gradients mislead it, it does not."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from lsa_cli.attacks import ATTACKS, make_threat
from lsa_cli.attacks.gradient import PGD
from lsa_cli.auditing.evidence import planted as under_test
from lsa_cli.auditing.evidence.planted import attack_to_test, passes, planted, trials
from lsa_cli.auditing.evidence.probe import Probe
from lsa_cli.auditing.network import open_network
from lsa_cli.settings import settings_from

EPS = {"linf": 0.1, "l2": 0.6, "l1": 3.0}


class Net(nn.Module):
    """A random network with something of another kind in front of it, or in the middle."""

    def __init__(self, front=lambda x: x, middle=lambda x: x):
        super().__init__()
        torch.manual_seed(0)
        self.front, self.middle = front, middle
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU())
        self.last = nn.Linear(48, 5)

    def forward(self, x):
        return self.last(self.middle(self.body(self.front(x))))


class Flipped(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


def thermometer(x):
    return torch.stack([(x > level / 8).float() for level in range(8)]).mean(0)


def steep(x):
    return torch.sigmoid(1e4 * (x - 0.5))


def seeded_dropout(x):
    seeds = (1e4 * x.detach().abs().sum(1)).long().tolist()
    keep = torch.stack(
        [(torch.rand(x.shape[1], generator=torch.Generator().manual_seed(seed)) > 0.5) for seed in seeds]
    )
    return x * keep


def strongest_only(x):
    return torch.where(x >= x.topk(8, 1).values[:, -1:], x, 0.0)


def probe_of(net, norm="linf", count=128, **options):
    x = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return Probe(
        net.eval(),
        x,
        torch.zeros(count, dtype=torch.long),
        torch.arange(count),
        make_threat(norm, EPS[norm]),
        **options,
    )


@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize("seed", range(3))
def test_an_honest_network_is_solved_and_random_search_solves_little(norm, seed):
    probe = probe_of(Net(), norm, seed=seed)
    check = planted(probe, probe.model.last, PGD(probe.threat))
    assert check.finding is None
    n, found, by_chance = check.n, check.saw["found"], check.saw["found by random search"]
    assert n >= 48
    assert found >= n - 3
    assert by_chance <= 5
    shares = f"{found / n:.0%} of {n} trials (random search: {by_chance / n:.0%})"
    assert check.said == f"pgd finds a planted adversarial example in {shares}"


BROKEN = {
    "sign of the gradient": Net(Flipped.apply),
    "rounded inputs": Net(lambda x: (8 * x).round() / 8),
    "rounded features": Net(middle=lambda x: (4 * x).round() / 4),
    "thermometer": Net(thermometer),
    "saturation": Net(steep),
    "ripples": Net(lambda x: x + 0.02 * torch.sin(400 * x)),
    "seeded dropout": Net(middle=seeded_dropout),
    "a detached input": Net(lambda x: x.detach()),
}


@pytest.mark.parametrize("what", BROKEN)
def test_gradients_that_mislead_are_found_out(what):
    probe = probe_of(BROKEN[what])
    check = planted(probe, probe.model.last, PGD(probe.threat))
    assert check.finding.code == "misses-planted"
    assert check.saw["found"] < 0.7 * check.n


def test_the_planted_point_is_within_the_budget_and_alone_in_its_class():
    probe = probe_of(Net(), count=20)
    features = nn.Sequential(probe.model.body)
    for norm in EPS:
        threat = make_threat(norm, EPS[norm])
        with under_test.per_sample(0, probe.index, "planted"), torch.no_grad():
            points = under_test._corners(features, threat, probe.x)
        assert threat.contains(points, probe.x).all()
        assert (threat.distance(points, probe.x) > 0.2 * EPS[norm]).all()  # at the ends of the range it is cut
    with under_test.per_sample(0, probe.index, "planted"), torch.no_grad():
        readout, separates = under_test._fitted(features, probe.threat, probe.x)
    assert separates.all()
    assert not readout.is_one(features(probe.x)).any()


def test_the_size_of_batches_changes_nothing():
    def saw(size):
        probe = probe_of(Net(middle=strongest_only), batch_size=size)
        return planted(probe, probe.model.last, PGD(probe.threat)).saw

    assert saw(128) == saw(7)


def test_without_a_last_layer_there_are_no_trials():
    probe = probe_of(Net())
    for last in (None, nn.Linear(1, 1)):
        check = planted(probe, last, PGD(probe.threat))
        assert (check.n, check.said, check.finding) == (0, "", None)


def test_a_network_that_stops_using_its_last_layer_is_not_tested():
    class Changing(Net):
        asked = 0

        def forward(self, x):
            self.asked += 1
            return super().forward(x) if self.asked < 20 else self.body(x)[:, :5]

    probe = probe_of(Changing())
    assert planted(probe, probe.model.last, PGD(probe.threat)).n == 0


def test_the_attack_of_the_audit_is_tested_unless_it_is_too_long_or_of_another_budget():
    threat = make_threat("linf", 0.1)
    attacks = [ATTACKS.get("fgsm")(threat), PGD(threat, steps=7), PGD(make_threat("l2", 1)), PGD(threat, steps=100)]
    assert attack_to_test(attacks, threat) == attacks[1]
    assert attack_to_test(attacks[:1], threat) == PGD(threat, steps=20)
    probe = probe_of(Net())
    assert planted(probe, probe.model.last, ATTACKS.get("apgd-ce")(threat, steps=10)).said.startswith("apgd-ce finds")


@pytest.mark.parametrize("count", [10, 32, 128])
def test_the_cost_is_what_the_estimate_says(count):
    net, spent = Net(), 0.0

    def counted(x):
        nonlocal spent
        spent += len(x) * (1.0 if x.requires_grad else 0.35)
        return net(x)

    probe = dataclasses.replace(probe_of(net, count=count), model=counted)
    planted(probe, net.last, PGD(probe.threat))
    assert 0.9 * passes(count) < spent < 1.15 * passes(count)
    assert [trials(n) for n in (5, 32, 128)] == [5, 12, 50]


@pytest.mark.parametrize("name", ["mnist_cnn.pt", "mnist_cnn_at.pt", "moon_mlp.pt"])
@pytest.mark.parametrize(("norm", "share"), [("linf", 1.0), ("linf", 0.2), ("l2", 1.0), ("l1", 1.0)])
def test_the_shipped_networks_are_not_doubted(samples, name, norm, share):
    network = open_network(samples / name, settings_from({}), {})
    rows = np.sort(np.random.default_rng(0).permutation(len(network.labels))[:64])
    eps = {"linf": network.settings.eps, "l2": 1.0, "l1": 8.0}[norm] * (0.2 if "moon" in name else 1) * share
    x, y = network.data.read(rows), torch.from_numpy(network.labels[rows])
    probe = Probe(network.classifier, x, y, torch.from_numpy(rows), make_threat(norm, eps, network.bounds))
    check = planted(probe, network.last_layer.module, PGD(probe.threat))
    assert check.n > 15
    assert check.finding is None
