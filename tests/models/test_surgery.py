"""Surgery that a checkpoint names: done before its weights are put in, and refused in one sentence where it cannot be."""

import copy

import pytest
import torch

from lsa_cli.attacks.randomness import per_sample
from lsa_cli.auditing.network import open_network
from lsa_cli.errors import CheckpointError
from lsa_cli.models.architectures import build_architecture
from lsa_cli.models.checkpoint import Description, write_checkpoint
from lsa_cli.models.surgery import _of_length_one, operate
from lsa_cli.settings import settings_from


def written(folder, samples, surgery, body=None):
    torch.manual_seed(0)
    body = body or operate(build_architecture("lsa:moon-mlp", {}), surgery)
    description = Description(
        architecture="lsa:moon-mlp", input_shape=[2], input_range=None, class_names=["upper", "lower"],
        data=f"npz:{samples / 'moons.npz'}?split=test", norm="linf", eps=0.3, surgery=surgery,
    )  # fmt: skip
    write_checkpoint(folder / "cut.pt", body, description)
    return folder / "cut.pt", body


def test_an_offset_is_added_to_the_one_score_of_a_binary_head(tmp_path, samples):
    """The score z is the logits (0, z): an offset of b makes them (0, z + b), still two classes."""
    surgery = [{"kind": "logit-offset", "outputs": 1}]
    body = operate(build_architecture("lsa:moon-mlp", {}), surgery)
    x = torch.rand(4, 2)
    plain = body(x).detach()
    with torch.no_grad():
        body.logit_offset.fill_(5.0)
    path, _ = written(tmp_path, samples, surgery, body)
    network = open_network(path, settings_from({}), {})
    logits = network.classifier(x)
    assert logits.shape == (4, 2)
    assert torch.equal(logits[:, 0], torch.zeros(4))
    assert torch.allclose(logits[:, 1], plain[:, 0] + 5.0)


def test_an_offset_moves_each_class_by_its_own_number_and_no_layer():
    torch.manual_seed(0)
    body = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
    x, names = torch.rand(5, 2), [name for name, _ in body.named_modules()]
    plain = body(x).detach()
    cut = operate(body, [{"kind": "logit-offset", "outputs": 3}])
    assert torch.equal(cut(x), plain)  # zero until it is fitted
    with torch.no_grad():
        cut.logit_offset.copy_(torch.tensor([0.0, -1.0, 2.0]))
    assert torch.allclose(cut(x) - plain, torch.tensor([0.0, -1.0, 2.0]).expand(5, 3), atol=1e-6)
    assert [name for name, _ in cut.named_modules()] == names
    assert "logit_offset" in cut.state_dict()


def test_a_wrapped_output_and_a_flat_one_are_moved_too():
    class Flat(torch.nn.Module):
        def forward(self, x):
            return {"logits": x.sum(1)}  # (N,): one score

    body = operate(Flat(), [{"kind": "logit-offset", "outputs": 1}])
    with torch.no_grad():
        body.logit_offset.fill_(2.0)
    assert torch.equal(body(torch.ones(3, 2)), torch.full((3,), 4.0))


@pytest.mark.parametrize(
    ("surgery", "says"),
    [
        ([{"kind": "lobotomy"}], "unknown surgery 'lobotomy'"),
        ([{"kind": "logit-offset"}], "does not fit the network"),
        ([{"kind": "logit-offset", "outputs": -1}], "does not fit the network"),
        ([{"kind": "logit-offset", "outputs": 1}] * 2, "has a logit offset already"),
        ([{"outputs": 2}], "unknown surgery"),
        ([{"kind": "logit-offset", "outputs": 10**12}], "offset"),
        (
            [{"kind": "self-gradient", "sites": {"elu1": [100]}, "returns": "odds"}],
            "logits or probabilities, not odds",
        ),
    ],
)
def test_surgery_that_cannot_be_done_is_refused(tmp_path, samples, surgery, says):
    path, _ = written(tmp_path, samples, surgery, build_architecture("lsa:moon-mlp", {}))
    with pytest.raises(CheckpointError, match=says):
        open_network(path, settings_from({}), {})


# ---- noise and gradients inside ------------------------------------------------------------------------


class Functional(torch.nn.Module):
    """Calls its activations itself: once as a function, once in place and without taking what is returned."""

    def forward(self, x):
        x = torch.nn.functional.relu(2 * x)
        x = x - 0.5
        x.relu_()
        return x


def smooth(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(4, 6), torch.nn.ELU(), torch.nn.Linear(6, 5), torch.nn.Softplus(), torch.nn.Linear(5, 3)
    )


def with_scale(body, surgery, value):
    noisy = operate(body, [surgery])
    with torch.no_grad():
        for scale in noisy.scales:
            scale.fill_(value)
    return noisy


def test_noise_is_added_before_the_layer():
    body = torch.nn.Sequential(torch.nn.ReLU())
    noisy = with_scale(body, {"kind": "noise", "sites": {"0": [3]}}, 0.5)
    x = torch.full((2, 3), 0.2)
    torch.manual_seed(1)
    found = noisy(x)
    torch.manual_seed(1)
    assert torch.equal(found, torch.relu(x + 0.5 * torch.randn(2, 3)))
    noisy.on = False
    assert torch.equal(noisy(x), x)


def test_noise_before_functions():
    noisy = with_scale(Functional(), {"kind": "noise", "sites": {":relu": [2], ":relu#2": [2]}}, 0.3)
    x = torch.rand(5, 2)
    torch.manual_seed(1)
    found = noisy(x)
    torch.manual_seed(1)
    first, second = torch.randn(5, 2), torch.randn(5, 2)
    assert torch.equal(found, torch.relu(torch.relu(2 * x + 0.3 * first) - 0.5 + 0.3 * second))


def test_shared_noise_is_one_for_the_batch_and_own_noise_belongs_to_the_sample():
    x = torch.zeros(4, 3)
    shared = with_scale(
        torch.nn.Sequential(torch.nn.Tanh()), {"kind": "noise", "sites": {"0": [3]}, "shared": True}, 1.0
    )
    assert torch.equal(*shared(x)[:2])
    own = with_scale(torch.nn.Sequential(torch.nn.Tanh()), {"kind": "noise", "sites": {"0": [3]}}, 1.0)
    assert not torch.equal(*own(x)[:2])
    with per_sample(0, torch.tensor([7, 2, 9, 4]), "test"):
        together = own(x)
    with per_sample(0, torch.tensor([9]), "test"):
        alone = own(x[:1])
    assert torch.equal(together[2], alone[0])


def test_the_noise_scale_gets_its_gradient():
    noisy = with_scale(
        torch.nn.Sequential(torch.nn.Identity(), torch.nn.ReLU()), {"kind": "noise", "sites": {"1": [2]}}, 0.1
    )
    x = torch.full((3, 2), 9.0)  # far from the kink: d/d scale of the sum is the sum of the noise
    torch.manual_seed(4)
    noisy(x).sum().backward()
    torch.manual_seed(4)
    assert torch.allclose(noisy.scales[0].grad, torch.randn(3, 2).sum(0))


def test_noise_on_images_of_another_size_is_told():
    noisy = operate(torch.nn.Sequential(torch.nn.ReLU()), [{"kind": "noise", "sites": {"0": [1, 4, 4]}}])
    with pytest.raises(CheckpointError, match="trained with"):
        noisy(torch.rand(2, 1, 5, 5))
    with pytest.raises(CheckpointError, match="does not use that layer"):
        operate(torch.nn.Sequential(torch.nn.ReLU()), [{"kind": "noise", "sites": {"0#2": [3]}}])(torch.rand(1, 3))


def test_a_self_gradient_network_starts_equal():
    body, x = smooth(), torch.randn(7, 4)
    wrapped = operate(copy.deepcopy(body), [{"kind": "self-gradient", "sites": {"1": [6], "3": [5]}}])
    assert torch.equal(wrapped(x), body(x))
    with torch.no_grad():
        assert torch.equal(wrapped(x), body(x))
    assert all(parameter.grad is None for parameter in wrapped.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in wrapped.modules())


def bent(sites):
    """A wrapped network in double precision whose maps are not zero."""
    wrapped = operate(smooth(), [{"kind": "self-gradient", "sites": sites}]).double()
    torch.manual_seed(3)
    with torch.no_grad():
        for part in wrapped.maps:
            part.weight.normal_()
    return wrapped


def test_the_second_pass_is_the_formula():
    wrapped, x = bent({"3": [5]}), torch.randn(6, 4, dtype=torch.float64)
    first, last = wrapped.network[:4], wrapped.network[4]
    hidden = first(x)
    scores = last(hidden)
    p = scores.softmax(1) - torch.nn.functional.one_hot(scores.argmax(1), 3)
    u = torch.nn.functional.normalize(p @ last.weight, dim=1)  # d CE(scores, argmax) / d hidden
    torch.testing.assert_close(wrapped(x), last(hidden + u @ wrapped.maps[0].weight.T))


def test_gradients_go_through_the_inner_gradient():
    wrapped, x = bent({"1": [6], "3": [5]}), torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(wrapped, (x,))
    frozen = [parameter.requires_grad_(False) for parameter in wrapped.parameters()]
    assert frozen
    torch.autograd.gradcheck(wrapped, (x,))
    with torch.no_grad():
        torch.testing.assert_close(wrapped(x), wrapped.requires_grad_(True)(x).detach())


def test_a_saturated_self_gradient_network_stays_finite():
    wrapped = bent({"1": [6]})
    x = (1e4 * torch.randn(4, 4, dtype=torch.float64)).requires_grad_(True)  # the loss of the prediction is 0
    (gradient,) = torch.autograd.grad(wrapped(x).sum(), x)
    assert torch.isfinite(gradient).all()


def test_a_row_without_a_gradient_is_zero_and_the_others_are_what_they_were():
    """Values and derivatives of both orders equal those of the plain formula to the bit, where that has any."""

    def plain(gradient):
        return gradient / (gradient.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1) + 1e-12)

    def looked_at(formula, start, rows):
        given = start.clone().requires_grad_(True)
        value = formula(given)
        (first,) = torch.autograd.grad((value * weights).sum(), given, create_graph=True)
        (second,) = torch.autograd.grad((first * first)[rows].sum(), given)
        return value.detach(), first.detach(), second

    torch.manual_seed(0)
    weights = torch.randn(6, 3, 4, 5)
    for layout in (torch.contiguous_format, torch.channels_last):
        start = torch.randn(6, 3, 4, 5).contiguous(memory_format=layout)
        start[1], start[4] = 0.0, start[4] * 1e-30  # nothing, and numbers whose squares are nothing
        loud, heard = [0, 2, 3, 5], [0, 2, 3, 4, 5]
        ours, theirs = looked_at(_of_length_one, start, slice(None)), looked_at(plain, start, loud)
        assert all(torch.equal(a[loud], b[loud]) for a, b in zip(ours, theirs, strict=True))
        assert all(torch.equal(a[heard], b[heard]) for a, b in zip(ours[:2], theirs[:2], strict=True))
        assert not any(part[1].any() for part in ours)
        assert all(part.isfinite().all() for part in ours)


def test_a_self_gradient_network_within_another_can_be_trained():
    """The maps of the outer one start at zero, those within are zero: nothing reaches what they give."""
    inner = operate(smooth(), [{"kind": "self-gradient", "sites": {"1": [6]}}])
    outer = operate(inner, [{"kind": "self-gradient", "sites": {"network.1": [6], "network.1#2": [6]}}])
    saturated = 1e4 * torch.randn(5, 4)
    loss = outer(torch.cat([torch.randn(5, 4), saturated])).square().sum()
    gradients = torch.autograd.grad(loss, list(outer.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients)


class Headed(torch.nn.Module):
    """One score z a sample, handed out in four ways; or two, or their probabilities."""

    def __init__(self, how):
        super().__init__()
        torch.manual_seed(0)
        self.how, self.hidden = how, torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ELU())
        self.last = torch.nn.Linear(6, 2 if how in ("two", "softmax") else 1)

    def forward(self, x):
        z = self.last(self.hidden(x))
        ways = {
            "flat": lambda: z[:, 0],
            "map": lambda: z[:, :, None, None],
            "sigmoid": z.sigmoid,
            "softmax": lambda: z.softmax(1),
        }
        return ways.get(self.how, lambda: z)()


@pytest.mark.parametrize(
    ("how", "like", "returns"),
    [("flat", "plain", "logits"), ("map", "plain", "logits"), ("sigmoid", "plain", "probabilities"), ("softmax", "two", "probabilities")],
)  # fmt: skip
def test_what_is_fed_back_hangs_on_the_prediction_and_not_on_how_it_is_handed_out(how, like, returns):
    """The gradient of CE of the same prediction, whether it comes as logits, flat, or as probabilities."""
    surgery, x = {"kind": "self-gradient", "sites": {"hidden.1": [6]}}, torch.randn(20, 4)
    as_logits = operate(Headed(like), [surgery])
    otherwise = operate(Headed(how), [{**surgery, "returns": returns}])
    scores = as_logits.network(x)
    assert 0 < (scores.argmax(1) if like == "two" else scores[:, 0] > 0).sum() < 20  # of both classes
    torch.testing.assert_close(otherwise._gradients(x), as_logits._gradients(x))
    for x_one in (x[:1], x):
        assert otherwise(x_one).shape == otherwise.network(x_one).shape


INSIDE = [
    {"kind": "noise", "sites": {"elu1": [100], "elu3": [100]}},
    {"kind": "self-gradient", "sites": {"elu2": [100]}},
    {"kind": "self-gradient", "sites": {"elu2": [100]}, "returns": "probabilities"},
]


@pytest.mark.parametrize("surgery", INSIDE, ids=["noise", "self-gradient", "of probabilities"])
def test_surgery_inside_comes_back_from_its_file(tmp_path, samples, surgery):
    path, body = written(tmp_path, samples, [surgery])
    found = open_network(path, settings_from({}), {}).classifier.body
    assert type(found) is type(body)
    assert all(torch.equal(a, b) for a, b in zip(body.state_dict().values(), found.state_dict().values(), strict=True))
    with torch.device("meta"):
        empty = operate(build_architecture("lsa:moon-mlp", {}), [surgery])
    assert all(tensor.is_meta for tensor in empty.parameters())


@pytest.mark.parametrize("kind", ["noise", "self-gradient"])
@pytest.mark.parametrize(
    ("sites", "says"),
    [
        ({}, "names no layers"),
        ({"elu9": [100]}, "no layer elu9"),
        ({"elu1": [0]}, "cannot have the shape"),
        ({"elu1": [10**6, 10**6]}, "more than the 100,000,000 allowed"),
        ({"elu1": ["wide"]}, "does not fit the network"),
        (["elu1"], "does not fit the network"),
        ({"elu1": [50]}, "do not fit"),
    ],
)
def test_surgery_inside_that_cannot_be_done_is_refused(tmp_path, samples, kind, sites, says):
    real = [{"kind": kind, "sites": {"elu1": [100]}}]
    body = operate(build_architecture("lsa:moon-mlp", {}), real)
    path, _ = written(tmp_path, samples, [{"kind": kind, "sites": sites}], body)
    with pytest.raises(CheckpointError, match=says):
        open_network(path, settings_from({}), {})


def test_places_named_as_older_files_name_them_are_the_same_places():
    """By path within a wrapper: a file of a network that was hardened twice. The keys of its weights are paths, too."""
    inner = {"kind": "self-gradient", "sites": {"1": [6]}}
    old = {"kind": "noise", "sites": {"network.3": [5], "network.3#2": [5], "maps.0": [6]}}
    new = {"kind": "noise", "sites": {"3": [5], "3#2": [5], "maps.0": [6]}}
    before, now = operate(smooth(), [inner, old]), operate(smooth(), [inner, new])
    assert list(before.places) == list(now.places) == ["3", "3#2", "maps.0"]
    assert list(now.state_dict()) == [
        *(f"network.network.{layer}.{part}" for layer in (0, 2, 4) for part in ("weight", "bias")),
        "network.maps.0.weight", *(f"scales.{n}" for n in range(3)),
    ]  # fmt: skip
    x = torch.randn(4, 4)
    torch.manual_seed(1)
    answer = before(x)
    torch.manual_seed(1)
    assert torch.equal(answer, now(x))
    inside = operate(torch.nn.Sequential(Functional()), [{"kind": "noise", "sites": {"0:relu#2": [2]}}])
    assert list(operate(inside, [{"kind": "noise", "sites": {"network.0:relu": [2]}}]).places) == ["0:relu"]
    outermost = operate(operate(Functional(), []), [{"kind": "noise", "sites": {":relu": [2]}}])
    assert list(operate(outermost, [{"kind": "noise", "sites": {"network:relu#2": [2]}}]).places) == [":relu#2"]


def test_an_offset_of_another_width_is_refused_and_never_makes_classes_up(tmp_path, samples):
    surgery = [{"kind": "logit-offset", "outputs": 2}]
    path, _ = written(tmp_path, samples, surgery, operate(build_architecture("lsa:moon-mlp", {}), surgery))
    with pytest.raises(CheckpointError, match="offset for 2 logits; the network returns 1"):
        open_network(path, settings_from({}), {})
