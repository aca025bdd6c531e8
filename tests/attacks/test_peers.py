"""The same attack in other libraries: FGSM to the bit, PGD and APGD to a sample or two; ours keep the strongest."""

import numpy as np
import pytest
import torch

from lsa_cli.attacks import ATTACKS, make_threat
from lsa_cli.auditing.network import open_network
from lsa_cli.settings import settings_from

EPS = 0.1


@pytest.fixture(scope="module")
def task(samples):
    network = open_network(samples / "mnist_cnn.pt", settings_from({}), {})
    rows = np.arange(200)
    return network.classifier.eval(), network.data.read(rows), torch.from_numpy(network.labels[rows])


def right(model, x, y):
    with torch.no_grad():
        return int((model(x).argmax(1) == y).sum())


def unsaturated(model, x, y):
    """Where the textbook cross-entropy still has its full gradient in float32."""
    with torch.no_grad():
        return model(x).softmax(1).gather(1, y[:, None]).squeeze(1) < 0.9999


def test_fgsm_is_torchattacks_fgsm(task):
    torchattacks = pytest.importorskip("torchattacks", reason="the peers are not installed")
    model, x, y = task
    ours = ATTACKS.get("fgsm")(threat=make_threat("linf", EPS))(model, x, y)
    theirs = torchattacks.FGSM(model, eps=EPS)(x, y)
    clear = unsaturated(model, x, y)
    assert clear.sum() > 20
    # A pixel whose gradient is zero up to rounding may take either sign.
    same = ((ours - theirs).abs() < 1e-6).flatten(1).float().mean(1)
    assert float(same[clear].min()) > 0.98
    assert right(model, ours, y) <= right(model, theirs, y) + 1


def test_pgd_is_not_weaker_than_torchattacks_pgd(task):
    torchattacks = pytest.importorskip("torchattacks", reason="the peers are not installed")
    model, x, y = task
    ours = ATTACKS.get("pgd")(threat=make_threat("linf", EPS), steps=10, step_size=0.02, random_start=False)
    theirs = torchattacks.PGD(model, eps=EPS, alpha=0.02, steps=10, random_start=False)
    ours_right, theirs_right = right(model, ours(model, x, y), y), right(model, theirs(x, y), y)
    assert theirs_right - 6 <= ours_right <= theirs_right + 1


def test_pgd_is_not_weaker_than_foolbox_pgd(task):
    foolbox = pytest.importorskip("foolbox", reason="the peers are not installed")
    model, x, y = task
    for norm, eps, peer in (("linf", EPS, foolbox.attacks.LinfPGD), ("l2", 1.0, foolbox.attacks.L2PGD)):
        size = 0.2 * eps
        attack = ATTACKS.get("pgd")(threat=make_threat(norm, eps), steps=10, step_size=size, random_start=False)
        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1))
        theirs = peer(abs_stepsize=size, steps=10, random_start=False)(wrapped, x, y, epsilons=eps)[1]
        assert right(model, attack(model, x, y), y) <= right(model, theirs, y) + 1


def test_pgd_is_not_weaker_than_adv_lib_pgd(task):
    adv_lib = pytest.importorskip("adv_lib.attacks", reason="the peers are not installed")
    model, x, y = task
    attack = ATTACKS.get("pgd")(threat=make_threat("linf", EPS), steps=10, step_size=0.02, random_start=False)
    theirs = adv_lib.pgd_linf(model, x, y, EPS, steps=10, absolute_step_size=0.02, random_init=False)
    assert right(model, attack(model, x, y), y) <= right(model, theirs, y) + 2


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.15), ("l2", 2.0), ("l1", 8.0)])
def test_apgd_is_not_weaker_than_adv_lib_apgd(task, norm, eps):
    """Two samples: what the random starts are worth."""
    apgd = pytest.importorskip("adv_lib.attacks.auto_pgd", reason="the peers are not installed").apgd
    model, x, y = task[0], task[1][:60], task[2][:60]
    order = {"linf": float("inf"), "l2": 2, "l1": 1}[norm]
    for name, loss in (("apgd-ce", "ce"), ("apgd-dlr", "dlr")):
        torch.manual_seed(0)
        theirs = apgd(model, x, y, eps, order, n_iter=20, loss_function=loss, use_large_reps=norm == "l1")
        ours = ATTACKS.get(name)(threat=make_threat(norm, eps), steps=20)(model, x, y, goal="break")
        assert right(model, ours, y) <= right(model, theirs, y) + 2


def test_apgd_is_not_weaker_than_torchattacks_apgd(task):
    torchattacks = pytest.importorskip("torchattacks", reason="the peers are not installed")
    model, x, y = task[0], task[1][:60], task[2][:60]
    theirs = torchattacks.APGD(model, norm="Linf", eps=0.15, steps=20, n_restarts=1)(x, y)
    ours = ATTACKS.get("apgd-ce")(threat=make_threat("linf", 0.15), steps=20)(model, x, y, goal="break")
    assert right(model, ours, y) <= right(model, theirs, y) + 2


def test_momentum_pgd_is_not_weaker_than_torchattacks_mifgsm(task):
    torchattacks = pytest.importorskip("torchattacks", reason="the peers are not installed")
    model, x, y = task
    theirs = torchattacks.MIFGSM(model, eps=0.15, alpha=0.03, steps=10, decay=1.0)(x, y)
    attack = ATTACKS.get("pgd")(
        threat=make_threat("linf", 0.15), steps=10, step_size=0.03, random_start=False, momentum=1.0
    )
    assert right(model, attack(model, x, y), y) <= right(model, theirs, y) + 1
