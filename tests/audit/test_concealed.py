"""Networks that conceal their weakness from the attacks of an audit are doubted; what attacks them keeps to its rules."""

import math
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from lsa_cli.attacks import ATTACKS, make_threat
from lsa_cli.auditing.evidence.examine import examine
from lsa_cli.auditing.evidence.float64 import exact_cosine
from lsa_cli.auditing.evidence.guided import Goals, LayerTap
from lsa_cli.auditing.evidence.network import directions
from lsa_cli.auditing.evidence.outputs import bare_logits, features_of_others, fresh_head
from lsa_cli.auditing.evidence.probe import Probe
from lsa_cli.auditing.evidence.searches import on_the_grid, parts_of_image, towards_features
from lsa_cli.auditing.evidence.special_attacks import LEVELS, OnGrid, PartsOfImage, TowardsNearestClasses
from lsa_cli.auditing.evidence.stronger import FIRST, Survivors, stronger_attack
from lsa_cli.models.architectures import build_architecture


def found(checked):
    return {check.finding.code: check.finding for check in checked if check.finding}


@pytest.fixture(scope="module")
def images():
    saved = np.load("sample_models/mnist.npz")
    x = torch.from_numpy(saved["x_test"][:96]).float().reshape(-1, 1, 28, 28) / 255
    return x, torch.from_numpy(saved["y_test"][:96].astype(np.int64))


@pytest.fixture(scope="module")
def networks():
    def of(name):
        body = build_architecture("lsa:mnist-cnn", {})
        body.load_state_dict(torch.load(f"sample_models/{name}.pt", weights_only=True)["state_dict"])
        return body.eval()

    return of("mnist_cnn"), of("mnist_cnn_at")


def logits(body, x):
    return body((x - 0.1307) / 0.3081)


class Decoy(nn.Module):
    """The class after the winner always stands just below it, and moves a little with the input."""

    def __init__(self, body):
        super().__init__()
        self.body = body
        self.register_buffer("w", torch.randn(784, generator=torch.Generator().manual_seed(3)))

    def forward(self, x):
        z = 3 * logits(self.body, x)
        top, winner = z.max(1)
        near = top - 1 + 0.5 * torch.tanh(0.05 * (x.flatten(1) @ self.w))
        after = (winner + 1)[:, None] % 10
        return z.scatter(1, after, torch.maximum(z.gather(1, after)[:, 0], near)[:, None])


class OffGrid(nn.Module):
    """Pictures of 8 bits with a touched background meet the weak network, everything else the robust one."""

    def __init__(self, weak, robust):
        super().__init__()
        self.weak, self.robust = weak, robust

    def forward(self, x):
        off = ((255 * x - (255 * x).round()).abs() > 1e-3).flatten(1).any(1)
        clean = (x < 1e-6).flatten(1).float().mean(1) > 0.55
        return torch.where((off | clean)[:, None], logits(self.robust, x), logits(self.weak, x))


class _Flip(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.save_for_backward(factor)
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0], None


class Flip(nn.Module):
    """The identity, whose gradient is multiplied by a factor."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return _Flip.apply(x, self.factor)


class WrongSigns(nn.Module):
    """The gradient of a share of the pixels has the wrong sign, and all of it another length."""

    def __init__(self, body, share, factor=1.0):
        super().__init__()
        self.body = body
        wrong = torch.rand(28, 28, generator=torch.Generator().manual_seed(5)) < share
        self.register_buffer("factor", torch.where(wrong, -factor, factor))

    def forward(self, x):
        return logits(self.body, _Flip.apply(x, self.factor))


def examined(network, images, eps, last=None):
    probe = Probe(network, *images, torch.arange(len(images[0])), make_threat("linf", eps))
    broken = probe.margin(probe.run(ATTACKS.get("pgd")(probe.threat))) > 0
    return found(examine(probe, broken=broken, last=last))


def last_of(body):
    return [module for module in body.modules() if isinstance(module, nn.Linear)][-1]


class LastLayerByHand(nn.Module):
    """Calls its last layer as a module only in passes without gradients."""

    def __init__(self):
        super().__init__()
        self.body, self.last = nn.Flatten(), nn.Linear(784, 10)

    def forward(self, x):
        z = self.body(x)
        return torch.nn.functional.linear(z, self.last.weight, self.last.bias) if z.requires_grad else self.last(z)


def test_a_last_layer_that_does_not_run_in_every_pass_is_left_out(images):
    body = LastLayerByHand()
    examined(body, images, 0.1, body.last)
    probe = Probe(body, *images, torch.arange(96), make_threat("linf", 0.1))
    assert fresh_head(probe, body.last) is None
    assert features_of_others(probe, body.last) is None


class Coarse(nn.Module):
    """Rounds its input, so that no gradient passes."""

    def forward(self, x):
        return (4 * x).round() / 4


def rounded_inside(body):
    """Normalisation, and the network with its features rounded before its fully connected layers."""
    parts = list(body.named_children())
    return nn.Sequential(OrderedDict([("norm", Normalise()), *parts[:9], ("coarse", Coarse()), *parts[9:]]))


class Normalise(nn.Module):
    def forward(self, x):
        return (x - 0.1307) / 0.3081


def test_where_gradients_end_in_the_middle_the_features_before_are_moved(networks, images):
    """Features that are rounded before the fully connected layers: no gradient of what follows, and one of what precedes."""
    body = rounded_inside(networks[0])
    probe = Probe(body, *images, torch.arange(96), make_threat("linf", 0.3)).first(48)
    left = probe.select(probe.margin(probe.x) <= 0)
    last = features_of_others(probe, body.fc2)
    with_layers = features_of_others(probe, body.fc2, ["relu1", "fc2", "relu3", "relu2"])
    assert [goals.called for goals in with_layers.goals] == ["the input of the last layer", "relu1", "fc2"]
    hidden = features_of_others(probe, body.fc2, ["relu4", "relu3", "relu2"])  # relu4 is the input of the last layer
    assert [goals.called for goals in hidden.goals] == ["the input of the last layer", "relu3", "relu2"]
    moved = hidden(body, left.x, left.y)
    assert probe.threat.contains(moved, left.x).all()
    broken = (body(moved).argmax(1) != left.y).sum()
    assert broken > len(left) / 2
    assert (body(last(body, left.x, left.y)).argmax(1) == left.y).all()
    finding = towards_features(left, hidden, len(left)).finding
    assert "(the input of the last layer, relu3, relu2)" in finding.message


def test_features_move_to_the_nearest_of_another_class():
    known, classes = torch.tensor([[0.0, 0.0], [1.0, 0.0], [5.0, 0.0]]), torch.tensor([0, 0, 1])
    goals = Goals(LayerTap("any"), "any", known, classes)
    found = goals.nearest(torch.tensor([[0.9, 0.0], [0.4, 0.0], [0.6, 0.0]]), torch.tensor([0, 1, 1]))
    assert torch.equal(found, known[[2, 0, 1]])


def test_a_decoy_among_the_logits_is_passed_by(networks, images):
    findings = examined(Decoy(networks[0]), images, 0.15, last_of(networks[0]))
    assert {"stronger-attack-wins", "fresh-head-wins", "bare-logits-win", "feature-attack-wins"} <= findings.keys()
    assert "but at most about" in findings["stronger-attack-wins"].message


def test_logits_before_a_decoy_are_attacked_and_those_that_are_the_same_are_not(networks, images):
    probe = Probe(Decoy(networks[0]), *images, torch.arange(96), make_threat("linf", 0.15))
    bare = bare_logits(probe, last_of(networks[0]))
    with torch.no_grad():
        outputs, judged = bare.outputs(probe.model, images[0])
        assert torch.allclose(outputs, logits(networks[0], images[0]), atol=1e-5)
        assert torch.equal(judged, probe.model(images[0]))
    plain = nn.Sequential(WrongSigns(networks[0], 0), nn.LogSoftmax(1))
    assert bare_logits(Probe(plain, *images, torch.arange(96), probe.threat), last_of(networks[0])) is None
    assert bare_logits(probe, networks[0]) is not None
    assert bare_logits(probe, nn.Linear(1, 1)) is None
    assert bare_logits(probe, next(m for m in networks[0].modules() if isinstance(m, nn.Conv2d))) is None


def test_another_network_for_pictures_is_met_on_their_grid(networks, images):
    probe = Probe(OffGrid(*networks), *images, torch.arange(96), make_threat("linf", 0.3)).first(48)
    left = probe.select(probe.margin(probe.run(ATTACKS.get("pgd")(probe.threat))) <= 0)
    assert len(left) > 40
    assert "grid-attack-wins" in found([on_the_grid(left, len(probe))])


def test_another_network_for_touched_frames_is_met_with_the_frame_left_alone(networks, images):
    class Framed(OffGrid):
        def forward(self, x):
            frame = torch.ones(28, 28, dtype=torch.bool)
            frame[2:-2, 2:-2] = False
            untouched = ((x * frame).flatten(1).amax(1) < 0.05)[:, None]
            return torch.where(untouched, logits(self.weak, x), logits(self.robust, x))

    probe = Probe(Framed(*networks), *images, torch.arange(96), make_threat("linf", 0.3)).first(48)
    left = probe.select(probe.margin(probe.run(ATTACKS.get("pgd")(probe.threat))) <= 0)
    assert len(left) > 40
    assert "part-of-image-wins" in found([parts_of_image(left, len(probe))])
    attack = PartsOfImage(probe.threat)
    moved = attack(Framed(*networks), left.x, left.y) - left.x
    frame_moves = moved[..., :3, :].abs().amax((1, 2, 3)) > 0
    background = left.x.flatten(1).mode(1).values[:, None, None, None] == left.x
    background_moves = (moved * background).abs().amax((1, 2, 3)) > 0
    assert not (frame_moves & background_moves).any()


class WhereEqual(nn.Module):
    """The second network where an image does not have what `mean` keeps, else the first one."""

    def __init__(self, weak, robust, mean):
        super().__init__()
        self.weak, self.robust, self.mean = weak, robust, mean

    def forward(self, x):
        is_other = ((self.mean(x) - x).abs() > 1e-3).flatten(1).any(1)
        grey = x.mean(1, keepdim=True)
        return torch.where(is_other[:, None], self.robust(grey), 5 * self.weak(grey))


def test_an_attack_keeps_what_all_images_have_in_common(networks, images):
    x, y = images
    squares = nn.functional.avg_pool2d(x, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    in_squares = lambda x: nn.functional.avg_pool2d(x, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)  # noqa: E731
    for inputs, mean in ((squares, in_squares), (x.repeat(1, 3, 1, 1), lambda x: x.mean(1, keepdim=True))):
        body = WhereEqual(*networks, mean)
        probe = Probe(body, inputs, y, torch.arange(96), make_threat("linf", 0.2))
        right = probe.select(body(inputs).argmax(1) == y)
        left = right.unbroken_by(ATTACKS.get("pgd")(probe.threat, steps=10))
        check = parts_of_image(left, len(right))
        assert check.finding.code == "part-of-image-wins"
        x_adv = PartsOfImage(probe.threat)(body, left.x, left.y)
        assert ((mean(x_adv) - x_adv).abs() < 1e-3).flatten(1).all(1).sum() >= check.saw["broken"]


@pytest.mark.parametrize(("share", "factor"), [(0.3, 1.0), (1 / 3, 3.0)])
def test_wrong_signs_of_a_third_of_the_gradient_are_seen(networks, images, share, factor):
    for body in networks:
        probe = Probe(WrongSigns(body, share, factor), *images, torch.arange(96), make_threat("linf", 0.1))
        assert "misaligned-gradient" in found([directions(probe)])


def test_wrong_signs_of_a_tenth_of_the_gradient_are_seen_where_the_margin_is_linear(networks, images):
    for body in networks:
        probe = Probe(WrongSigns(body, 0.1), *images, torch.arange(96), make_threat("linf", 0.1))
        check = directions(probe)
        assert check.saw["cosine in float64"] == pytest.approx(0.8, abs=0.15)
        assert "misaligned-gradient" in found([check])


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.3), ("linf", 0.1), ("l2", 2.0)])
def test_short_steps_in_float64_agree_with_the_gradient(networks, images, norm, eps):
    for body in networks:
        cosine, steps = exact_cosine(Probe(body, *images, torch.arange(96), make_threat(norm, eps)))
        assert cosine > 0.99
        assert steps > 20


def test_rounded_inputs_have_almost_no_linear_steps(networks, images):
    class Rounded(nn.Module):
        def forward(self, x):
            return x + (x.mul(8).round() / 8 - x).detach()

    body = nn.Sequential(Rounded(), networks[0])
    assert exact_cosine(Probe(body, *images, torch.arange(96), make_threat("linf", 0.1)))[1] < 10


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 1.0), ("l1", 10.0)])
def test_wrong_signs_in_one_place_are_seen_and_the_place_is_named(networks, images, norm, eps):
    body = WrongSigns(networks[0], 0)
    body.factor[7:14, 14:21] = -1
    check = directions(Probe(body, *images, torch.arange(96), make_threat(norm, eps)))
    assert "of rows 7 to 13 and columns 14 to 20 alone" in check.finding.message
    assert check.saw["least cosine of a block"] < -0.9


def test_a_wrong_sign_in_a_vector_is_seen_too():
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(32, 2)
    factor = torch.ones(32)
    factor[6:8] = -1
    x, y = torch.rand(96, 32, generator=generator), torch.arange(96) % 2
    probe = Probe(nn.Sequential(Flip(factor), head), x, y, torch.arange(96), make_threat("linf", 0.1))
    assert "of inputs 6 to 7 alone" in directions(probe).finding.message
    factor[:] = -1
    assert directions(probe).saw["cosine"] == pytest.approx(-1)
    assert directions(probe).finding


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.3), ("linf", 2 / 255), ("l2", 2.0), ("l1", 10.0)])
def test_honest_gradients_are_aligned(networks, images, norm, eps):
    for body in networks:
        probe = Probe(WrongSigns(body, 0), *images, torch.arange(96), make_threat(norm, eps))
        check = directions(probe)
        assert check.saw["cosine"] > 0.9
        assert check.saw["least cosine of a block"] > 0.9
        assert check.finding is None


def test_honest_networks_are_not_doubted(networks, images):
    few = images[0][:48], images[1][:48]
    for body, eps in ((networks[0], 0.05), (networks[1], 0.3)):
        assert examined(WrongSigns(body, 0), few, eps, last_of(body)) == {}


# ---- the attacks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.3), ("linf", 4.5 / 255), ("l2", 2.0), ("l1", 20.0)])
def test_an_attack_on_the_grid_stays_on_it_and_in_the_budget(networks, images, norm, eps):
    threat = make_threat(norm, eps)
    x, y = images[0][:16], images[1][:16]
    x_adv = OnGrid(threat=threat)(WrongSigns(networks[0], 0), x, y)
    assert torch.allclose(255 * x_adv, (255 * x_adv).round(), atol=1e-3)
    assert threat.contains(x_adv, x).all()
    assert not torch.equal(x_adv, x)


def test_the_grid_is_out_of_reach_of_less_than_a_level():
    assert not OnGrid.fits(make_threat("linf", 0.9 / LEVELS))
    assert OnGrid.fits(make_threat("linf", 1 / LEVELS))


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_towards_the_nearest_class_breaks_just_what_a_linear_network_has_within_the_radius(norm, dual):
    """The distance to a linear boundary is the gap of the logits over the dual norm of the difference of their weights."""
    generator = torch.Generator().manual_seed(0)
    body = nn.Linear(6, 5, bias=False)
    with torch.no_grad():
        body.weight.copy_(torch.randn(5, 6, generator=generator))
    x = torch.randn(300, 6, generator=generator)
    z = body(x).detach()
    y = z.argmax(1)
    lengths = torch.linalg.vector_norm(body.weight[y][:, None] - body.weight[None], ord=dual, dim=2).detach()
    gaps = (z.gather(1, y[:, None]) - z) / lengths.clamp_min(1e-9)
    distance = gaps.scatter(1, y[:, None], math.inf).amin(1)
    threat = make_threat(norm, float(distance.median()), None)
    x_adv = TowardsNearestClasses(threat=threat)(body, x, y)
    broken = body(x_adv).argmax(1) != y
    clear = (distance / threat.eps - 1).abs() > 0.01
    assert torch.equal(broken[clear], (distance < threat.eps)[clear])


# ---- until it tells ------------------------------------------------------------------------------------


def left(count, weak):
    """Samples on a line, of two classes: `weak` of them, evenly spread, are within the radius of the other class."""
    x = torch.ones(count, 1)
    if weak:
        x[:: max(1, count // weak)][:weak] = 0.05
    body = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        body.weight.copy_(torch.tensor([[-1.0], [1.0]]))
    return Probe(body, x, torch.ones(count, dtype=torch.long), torch.arange(count), make_threat("linf", 0.1, None))


def test_samples_are_taken_until_the_number_is_known_to_five_points():
    check = stronger_attack(Survivors.of(left(900, 0), 1000))
    assert check.n == FIRST
    assert check.finding is None
    few = stronger_attack(Survivors.of(left(40, 0), 1000))  # no more than 4 points can be missing
    assert (few.n, few.finding) == (40, None)
    assert stronger_attack(Survivors.of(left(10, 10), 1000)).n == 0


def test_more_than_a_point_beyond_noise_is_a_finding_with_its_figures():
    check = stronger_attack(Survivors.of(left(900, 225), 1000))
    assert check.n == FIRST
    finding = check.finding
    assert finding.code == "stronger-attack-wins"
    assert "the robust accuracy is not 90.0% but at most about 67.5%" in finding.message


def test_what_breaks_counts_once_all_survivors_were_tried_and_is_no_doubt_within_noise():
    check = stronger_attack(Survivors.of(left(19, 1), 20))
    assert (check.n, check.finding) == (19, None)
    assert check.attacks
    assert check.said == "short stronger attacks break 1 of the 19 samples that the others left"
    assert stronger_attack(Survivors.of(left(19, 10), 20)).finding.code == "stronger-attack-wins"
    assert stronger_attack(Survivors.of(left(19, 0), 20)).finding is None
    assert stronger_attack(Survivors.of(left(39, 1), 40)).finding is None
