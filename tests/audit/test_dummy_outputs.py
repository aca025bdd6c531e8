"""Outputs that draw attacks to themselves are folded or left out, and what is then broken counts."""

import numpy as np
import pytest
import torch
from torch import nn

from lsa_cli import audit
from lsa_cli.attacks import ATTACKS, make_threat
from lsa_cli.auditing.evidence.dummy_outputs import _members, dummy_outputs
from lsa_cli.auditing.evidence.probe import Probe
from lsa_cli.models.architectures import build_architecture

LABELLED = torch.arange(20) < 10


@pytest.fixture(scope="module")
def images():
    saved = np.load("sample_models/mnist.npz")
    x = torch.from_numpy(saved["x_test"][:96]).float().reshape(-1, 1, 28, 28) / 255
    return x, torch.from_numpy(saved["y_test"][:96].astype(np.int64))


@pytest.fixture(scope="module")
def body():
    made = build_architecture("lsa:mnist-cnn", {})
    made.load_state_dict(torch.load("sample_models/mnist_cnn.pt", weights_only=True)["state_dict"])
    return made.eval()


class TenDecoys(nn.Module):
    """Ten more outputs just below the winner, which move with the input a little, and never win."""

    def __init__(self, body):
        super().__init__()
        self.body = body
        self.register_buffer("w", torch.randn(784, 10, generator=torch.Generator().manual_seed(3)))

    def forward(self, x):
        z = 3 * self.body((x - 0.1307) / 0.3081)
        near = z.amax(1, keepdim=True) - 1 + 0.5 * torch.tanh(0.05 * (x.flatten(1) @ self.w))
        return torch.cat([z, near], 1)


class Doubled(nn.Module):
    """Twenty outputs of the last layer; each logit is the larger of two, of which the second may hide the gradient."""

    def __init__(self, body, hides=False):
        super().__init__()
        self.body, self.last, self.hides = body, nn.Linear(10, 20), hides
        with torch.no_grad():
            self.last.bias.copy_(3.0 * (torch.arange(20) >= 10))
            self.last.weight.copy_(torch.cat([torch.eye(10), torch.eye(10)]))

    def forward(self, x):
        z = self.last(self.body((x - 0.1307) / 0.3081))
        return torch.maximum(z[:, :10], z[:, 10:].detach() if self.hides else z[:, 10:])


def left_of(network, images, eps, attack="pgd"):
    probe = Probe(network.eval(), *images, torch.arange(96), make_threat("linf", eps))
    return probe, probe.unbroken_by(ATTACKS.get(attack)(probe.threat))


def test_decoys_that_no_sample_is_labelled_with_are_left_out(body, images):
    probe, left = left_of(TenDecoys(body), images, 0.15)
    check = dummy_outputs(left, probe, LABELLED, None, len(probe))
    assert check.saw["dummy outputs"] == 10
    assert check.saw["broken"] > 0.3 * check.n > 10
    assert check.finding.code == "dummy-outputs-win"


def test_an_audit_tells_of_decoys_and_takes_the_lower_number(body, images):
    x, y = (tensor.numpy() for tensor in images)
    report = audit(TenDecoys(body), data=(x, y), eps=0.15, normalize="none", layers=["none"], noise=["none"])
    assert "dummy-outputs-win" in [finding.code for finding in report.evidence.findings]
    assert "dummies-left-out" in report.verdict.attacks
    assert report.verdict.robust.value < 0.7


def test_outputs_that_the_network_folds_itself_are_found_and_honest_ones_are_no_doubt(body, images):
    network = Doubled(body)
    probe, left = left_of(network, images, 0.1)
    members = _members(probe, network.last(body((images[0] - 0.1307) / 0.3081)).detach(), torch.full((20,), -1))
    assert torch.equal(members.long().argmax(1), torch.arange(20) % 10)
    check = dummy_outputs(left, probe, torch.ones(10, dtype=torch.bool), network.last, len(probe))
    assert check.saw["dummy outputs"] == 10
    assert check.finding is None


def test_outputs_that_are_folded_and_hide_the_gradient_are_attacked_before_the_fold(body, images):
    network = Doubled(body, hides=True)
    probe = Probe(network.eval(), *images, torch.arange(96), make_threat("linf", 0.1))
    check = dummy_outputs(probe, probe, torch.ones(10, dtype=torch.bool), network.last, len(probe))
    plain = ATTACKS.get("pgd")(probe.threat, steps=10, random_start=False)
    bare = Probe(Doubled(body).eval(), *images, torch.arange(96), probe.threat)
    assert check.saw["broken"] == len(bare) - len(bare.unbroken_by(plain)) > 0.15 * check.n
    assert check.finding


def test_unlabelled_classes_of_an_honest_network_are_no_doubt(body, images):
    few = images[1] < 5
    x, y = images[0][few], images[1][few]
    plain = nn.Sequential(nn.BatchNorm2d(1, affine=False), body).eval()
    plain[0].running_mean[:], plain[0].running_var[:] = 0.1307, 0.3081**2
    for eps in (0.05, 0.1):
        probe = Probe(plain, x, y, torch.arange(len(x)), make_threat("linf", eps))
        left = probe.unbroken_by(ATTACKS.get("pgd")(probe.threat))
        check = dummy_outputs(left, probe, torch.arange(10) < 5, None, len(probe))
        assert check.saw["dummy outputs"] == 5
        assert check.finding is None


def test_without_dummy_outputs_nothing_is_attacked(body, images):
    probe, left = left_of(nn.Sequential(body), images, 0.02)
    last = [module for module in body.modules() if isinstance(module, nn.Linear)][-1]
    for module in (last, None, nn.Linear(1, 1)):
        check = dummy_outputs(left, probe, torch.ones(10, dtype=torch.bool), module, len(probe))
        assert (check.n, check.finding) == (0, None)
