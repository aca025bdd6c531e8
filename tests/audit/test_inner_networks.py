"""Networks that hold other networks: these are found and attacked, and what a network does for changed images is compared."""

import pytest
import torch
from torch import nn

from lsa_cli.attacks import make_threat
from lsa_cli.auditing.evidence.attacks import noise_of_equal_size
from lsa_cli.auditing.evidence.guided import JointTap, NoRows, Tap
from lsa_cli.auditing.evidence.network import batch_dependence
from lsa_cli.auditing.evidence.outputs import inner_networks
from lsa_cli.auditing.evidence.probe import Probe
from lsa_cli.auditing.evidence.searches import inner_network
from tests.zoo.base import SAMPLE, mnist
from tests.zoo.chosen import AloneAndChanged, UnlessSure
from tests.zoo.honest import Ensemble


def probe_of(network, n=32, eps=0.3):
    x, y = (part[:n] for part in mnist())
    return Probe(network.eval(), x, y, torch.arange(n), make_threat("linf", eps))


def last_of(network):
    return network.body.fc2


def test_a_network_that_answers_where_it_is_sure_is_met_inside():
    network = UnlessSure(SAMPLE.weak(), SAMPLE.robust())
    probe = probe_of(network)
    attack = inner_networks(probe, last_of(network.other))
    outputs, logits = attack.outputs(network, probe.x)
    assert torch.allclose(outputs, network.net(probe.x).log_softmax(1), atol=1e-5)
    assert torch.equal(logits, network(probe.x))
    check = inner_network(probe, attack, len(probe))
    assert check.finding.code == "inner-network-wins"
    assert check.saw["broken"] > 16


def test_a_network_without_another_one_has_none_inside():
    network = SAMPLE.weak()
    assert inner_networks(probe_of(network), last_of(network)) is None
    assert inner_networks(probe_of(nn.Sequential(network, nn.LogSoftmax(1))), None) is None
    assert inner_networks(Probe(network.forward, *mnist(), torch.arange(0), make_threat("linf", 0.3)), None) is None


def test_a_part_that_does_not_classify_is_no_network():
    class Beside(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.beside = SAMPLE.weak(), nn.Linear(784, 10)

        def forward(self, x):
            return self.net(x) + 0.001 * self.beside(x.flatten(1))

    network = Beside()
    nn.init.zeros_(network.beside.weight)
    inner = inner_networks(probe_of(network), last_of(network.net))
    assert inner is None


def test_the_members_of_an_ensemble_are_attacked_together():
    ensemble = Ensemble(SAMPLE.weak(), SAMPLE.robust())
    probe = probe_of(ensemble)
    attack = inner_networks(probe, None)
    assert len(attack.tap.taps) == 2
    outputs, logits = attack.outputs(ensemble, probe.x)
    assert torch.allclose(outputs, 2 * logits, atol=1e-4)


def test_a_tap_of_a_module_that_runs_several_times_is_the_mean():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            return self.layer(x) + self.layer(2 * x)

    class Grows(Twice):
        def forward(self, x):
            return self.layer(x) + self.layer(torch.cat([x, x]))[: len(x)]

    x = torch.rand(5, 4)
    network = Twice()
    values, logits = Tap.of(network, network.layer, inputs=True)(network, x)
    assert torch.allclose(values, 1.5 * x)
    assert torch.equal(logits, network(x))
    joint, _ = JointTap((Tap.of(network, network.layer, inputs=False),) * 2)(network, x)
    assert torch.allclose(joint, 2 * (logits / 2).log_softmax(1))
    grows = Grows()
    with pytest.raises(NoRows):
        Tap.of(grows, grows.layer, inputs=True)(grows, x)


def test_changed_images_are_also_asked_alone():
    network = AloneAndChanged(SAMPLE.weak(), SAMPLE.robust())
    probe = probe_of(network)
    with torch.no_grad():
        same = network(probe.x[:2])[:1]
        assert torch.allclose(network(probe.x[:1]), same, atol=1e-4)  # images as they are show nothing
    assert batch_dependence(probe).finding.code == "batch-dependent"
    assert batch_dependence(probe_of(SAMPLE.robust())).finding is None


def test_noise_that_breaks_much_is_no_finding_where_the_attack_breaks_more():
    """Any change breaks 12 samples of 28, and that of the attack also `more` others."""
    x = torch.full((28, 1, 4, 4), 0.5)
    attacked = x + 0.1
    rows = torch.arange(28)

    def checked(more):
        def network(inputs):
            by_any = (inputs != x).flatten(1).any(1) & (rows < 12)
            by_attack = (inputs == attacked).flatten(1).all(1) & (rows < 12 + more)
            return torch.stack([~(by_any | by_attack), by_any | by_attack], 1).float()

        probe = Probe(network, x, torch.zeros(28, dtype=torch.long), rows, make_threat("linf", 0.1))
        check = noise_of_equal_size(probe, attacked)
        assert check.saw == {"broken by noise": 12, "broken by the attack": 12 + more, "by noise alone": 0}
        return check

    assert checked(4).finding is None
    assert checked(1).finding.code == "noise-as-strong"
