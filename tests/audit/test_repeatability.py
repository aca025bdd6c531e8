"""Networks that remember, count, or detect how they are asked are doubted; honest ones with a training mode are not."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lsa_cli import audit
from lsa_cli.attacks import make_threat
from lsa_cli.auditing.evidence.network import batch_dependence
from lsa_cli.auditing.evidence.probe import Probe
from lsa_cli.auditing.evidence.repeatability import SAMPLES, Beginning, history, modes
from lsa_cli.models.classifier import Classifier

EPS = 0.2


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(64, 1, 6, 6, generator=generator), torch.arange(64) % 4


def body(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 24), nn.ReLU(), nn.Linear(24, 4))


def probe_of(network, data, norm="linf"):
    x, y = data
    return Probe(Classifier(network).eval(), x, y, torch.arange(len(x)), make_threat(norm, EPS))


class Two(nn.Module):
    """One of two networks, by a condition."""

    def __init__(self, condition=None):
        super().__init__()
        self.one, self.other, self.condition = body(0), body(1), condition

    def forward(self, x):
        return (self.other if self.condition(self, x) else self.one)(x)


class Counting(Two):
    """Another network from the 500th input on."""

    def __init__(self):
        super().__init__(lambda self, x: self.seen > 500)
        self.seen = 0

    def forward(self, x):
        self.seen += len(x)
        return super().forward(x)


class Remembering(nn.Module):
    """Repeats the class of the first input that it was asked within 2 eps."""

    def __init__(self):
        super().__init__()
        self.body, self.known, self.classes = body(), torch.empty(0, 36), torch.empty(0, dtype=torch.long)

    def forward(self, x):
        z, flat = self.body(x), x.detach().flatten(1)
        classes = z.detach().argmax(1)
        if len(self.known):
            nearest = torch.cdist(flat, self.known, p=torch.inf).min(1)
            near = nearest.values < 2 * EPS
            classes = torch.where(near, self.classes[nearest.indices], classes)
            z = z + 5 * F.one_hot(classes, 4) * near[:, None]
        self.known, self.classes = torch.cat([self.known, flat]), torch.cat([self.classes, classes])
        return z


IN_A_MODE = {
    "with a gradient of the input": lambda self, x: x.requires_grad,
    "with gradients enabled": lambda self, x: torch.is_grad_enabled() and not x.requires_grad,
    "with weights that require gradients": lambda self, x: self.one[1].weight.requires_grad,
    "in inference mode": lambda self, x: torch.is_inference_mode_enabled(),
    "in training mode": lambda self, x: self.training,
}


@pytest.mark.parametrize("mode", IN_A_MODE)
def test_a_network_that_detects_the_mode_of_a_pass_is_found_and_the_mode_named(data, mode):
    probe = probe_of(Two(IN_A_MODE[mode]), data)
    check = modes(probe, Beginning.of(probe.model))
    assert check.finding.code == "mode-dependent"
    assert {name for name, count in check.saw.items() if count} == {mode}
    assert f"a pass {mode} gives another output" in check.finding.message


def test_the_gradient_modes_of_a_network_that_cannot_be_copied_are_compared_on_itself(data):
    probe = probe_of(Two(IN_A_MODE["with a gradient of the input"]), data)
    check = modes(probe, Beginning(None))
    assert list(check.saw) == ["with a gradient of the input", "with gradients enabled"]
    assert check.finding


@pytest.mark.parametrize("network", [Counting, Remembering])
def test_an_audit_tells_of_memory(data, network):
    x, y = (tensor.numpy() for tensor in data)
    found = audit(network(), data=(x, y), eps=EPS, normalize="none", layers=["none"]).evidence.findings
    assert "history-dependent" in [finding.code for finding in found]


def test_a_change_of_what_no_copy_holds_is_seen_between_beginning_and_end(data):
    asked = [0]  # shared by all copies

    def later(self, x):
        asked[0] += len(x)
        return asked[0] > 500

    probe = probe_of(Two(later), data)
    before = Beginning.of(probe.model).asked(probe.first(SAMPLES))
    assert history(probe, before).finding is None
    asked[0] = 1000
    check = history(probe, before)
    assert check.saw["differ"] == SAMPLES
    assert check.finding.code == "history-dependent"


@pytest.mark.parametrize("kept", [[], None], ids=["in a global", "in a file"])
def test_queries_that_all_copies_share_are_seen_after_the_neighbours_of_an_input(data, kept, tmp_path):
    file = tmp_path / "queries.pt"

    def earlier():
        return torch.cat(kept) if kept else torch.load(file) if file.exists() else torch.zeros(0, 36)

    def near(self, x):
        known, flat = earlier(), x.detach().flatten(1)
        torch.save(torch.cat([known, flat]), file) if kept is None else kept.append(flat)
        return bool(len(known)) and bool((torch.cdist(flat, known, p=torch.inf).amin(1) < EPS).all())

    probe = probe_of(Two(near), data)
    check = history(probe, Beginning.of(probe.model))
    assert check.finding.code == "history-dependent"
    assert check.saw["differ"] >= SAMPLES // 2


class InTraining(nn.Module):
    """Differs in training mode as honest networks do."""

    def __init__(self, what):
        super().__init__()
        self.first, self.what = body(), what
        self.norm, self.drop = nn.BatchNorm1d(4), nn.Dropout(0.5)

    def forward(self, x):
        z = self.drop(self.norm(self.first(x)))
        return self.what(z) if self.training else z


HONEST = {
    "plain": lambda z: z,
    "functional dropout": lambda z: F.dropout(z, 0.5),
    "statistics of the batch": lambda z: z - 2 * z.mean(0),
    "log-softmax": lambda z: z.log_softmax(1),
    "several outputs": lambda z: (z, z[:1]),
    "no outputs": lambda z: z[:, :0].sum(),
}


@pytest.mark.parametrize("what", HONEST)
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_honest_networks_repeat_themselves(data, what, norm):
    probe = probe_of(InTraining(HONEST[what]), data, norm)
    state = {name: tensor.clone() for name, tensor in probe.model.state_dict().items()}
    before = Beginning.of(probe.model).asked(probe.first(SAMPLES))
    made = [history(probe, before), modes(probe, before)]
    assert [check.finding for check in made] == [None, None]
    assert made[0].n == 4 * SAMPLES + SAMPLES // 2
    assert all(torch.equal(tensor, state[name]) for name, tensor in probe.model.state_dict().items())
    assert not any(module.training for module in probe.model.modules())
    assert all(parameter.requires_grad for parameter in probe.model.parameters())


def test_another_network_for_single_samples_is_found_though_they_are_given_in_pairs(data):
    probe = probe_of(Two(lambda self, x: len(x) == 1), data)
    assert batch_dependence(probe).finding
    probe.model.in_pairs = True
    assert batch_dependence(probe).finding
    assert probe.model.in_pairs


def test_a_network_that_fails_on_a_single_sample_is_no_doubt_where_it_is_given_in_pairs(data):
    class Squeezing(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = body()

        def forward(self, x):
            return self.body(x)[:, :, None].squeeze()

    probe = probe_of(Squeezing(), data)
    probe.model.in_pairs = True
    assert batch_dependence(probe).finding is None
    assert np.isfinite(batch_dependence(probe).saw["largest difference"])
