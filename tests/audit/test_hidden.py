"""The search for networks inside of the network that answer no sample."""

import warnings

import pytest
import torch
from torch import nn

from lsa_cli.attacks import make_threat
from lsa_cli.auditing.evidence.hidden import hidden_network
from lsa_cli.auditing.evidence.probe import Probe
from lsa_cli.models.rehydration import Program
from tests.zoo.base import SAMPLE, mnist
from tests.zoo.honest import Ensemble
from tests.zoo.unusual import WithAverage


def bright(x):
    """(N,) bool: whether all pixels of a corner, which are black in images of digits, are bright."""
    return (x[:, 0, :4, :4] > 0.25).flatten(1).all(1)


class Chosen(nn.Module):
    """The second network where a corner is bright, else the first one. asks: by code that no gradient could pass."""

    def __init__(self, first, second, asks=False):
        super().__init__()
        self.first, self.second, self.asks = first, second, asks

    def forward(self, x):
        if self.asks:
            return self.second(x) if bool(bright(x).all().numpy()) else self.first(x)
        return torch.where(bright(x)[:, None], self.second(x), self.first(x))


class InScript(Chosen):
    """The same, in the part of Python that TorchScript has."""

    def forward(self, x):
        corner = (x[:, 0, :4, :4] > 0.25).flatten(1).all(1)
        return torch.where(corner[:, None], self.second(x), self.first(x))


def check(network, n=32):
    x, y = (part[:n] for part in mnist())
    probe = Probe(network.eval(), x, y, torch.arange(n), make_threat("linf", 0.3))
    before = [weight.clone() for weight in network.parameters()]
    found = hidden_network(probe.select(probe.clean.argmax(1) == y), probe)
    assert all(torch.equal(one, other) for one, other in zip(before, network.parameters(), strict=True))
    return found


@pytest.mark.parametrize("asks", [False, True])
def test_a_network_that_answers_no_sample_is_attacked_by_itself(asks):
    found = check(Chosen(SAMPLE.robust(), SAMPLE.weak(), asks))
    assert found.finding.code == "hidden-network"
    assert "(second)" in found.finding.message
    assert found.saw["broken"] > 28


def test_it_is_also_found_in_a_compiled_program():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.jit.script(InScript(SAMPLE.robust(), SAMPLE.weak()))
    assert check(Program(program)).finding.code == "hidden-network"


def test_one_that_is_as_robust_as_the_rest_is_no_finding():
    found = check(Chosen(SAMPLE.weak(), SAMPLE.robust()))
    assert found.finding is None
    assert found.saw["found"] > 0


def test_a_moving_average_that_does_not_run_is_no_finding():
    found = check(WithAverage(SAMPLE.robust()))
    assert (found.finding, found.saw["found"]) == (None, 1)


def test_networks_whose_parts_all_answer_have_none():
    for network in (SAMPLE.weak(), Ensemble(SAMPLE.robust(), SAMPLE.weak())):
        assert check(network).saw == {"found": 0}


def test_one_whose_layers_are_kept_apart_is_found_by_its_last_layer():
    class Apart(Chosen):
        def __init__(self, first, second):
            super().__init__(first, second.body[:-1])
            self.head = second.body[-1]
            self.mean, self.std = second.mean, second.std

        def forward(self, x):
            hidden = self.head(self.second((x - self.mean) / self.std))
            return torch.where(bright(x)[:, None], hidden, self.first(x))

    found = check(Apart(SAMPLE.robust(), SAMPLE.weak()))
    assert found.finding.code == "hidden-network"
    assert "(head)" in found.finding.message
