"""What is settled before anything is attacked."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from lsa_cli import audit
from lsa_cli.attacks import ATTACKS, NOISES, Attack, Threat
from lsa_cli.auditing.outcome import settings_of
from lsa_cli.auditing.plan import make_plan
from lsa_cli.errors import DataError, LayerError, UsageError
from lsa_cli.models.architectures import moon_mlp
from lsa_cli.models.checkpoint import Description, write_checkpoint
from lsa_cli.settings import merge, settings_from
from lsa_cli.wording import eps_as_text


@dataclass(frozen=True)
class Demanding(Attack):
    threat: Threat
    strength: float

    def perturb(self, model, x, y):
        return x


@pytest.fixture
def demanding():
    ATTACKS.register("demanding")(Demanding)
    yield
    del ATTACKS._entries["demanding"]


@pytest.fixture
def task():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.rand(60, 1, 4, 4)
    return body, x, torch.arange(60) % 3


def plan(task, **options):
    body, x, y = task
    return make_plan(body, settings_from({"threads": 1, "eps": 0.1, **options}), {}, (x, y))


@pytest.mark.parametrize(
    ("eps", "text"),
    [(8 / 255, "8/255"), (0.3, "0.3"), (0.5, "0.5"), (1 / 255, "1/255"), (0.5 / 255, "0.5/255"), (0, "0")],
)
def test_radii_are_written_as_people_write_them(eps, text):
    assert eps_as_text(eps) == text


def test_defaults_are_three_attacks_five_noises_and_the_paper_rule(task):
    made = plan(task)
    assert [named.label for named in made.attacks] == ["fgsm", "pgd", "t-pgd"]
    assert [named.label for named in made.noises] == NOISES.names()
    assert (made.rule.eta, made.rule.sigma, made.rule.top_k) == (0.5, "samples", None)
    assert plan(task, sigma="layers").rule.eta == 0.8
    assert [layer.name for layer in made.layers] == ["2"]


def test_general_options_reach_the_attacks_that_take_them_and_a_spec_wins(task):
    made = plan(task, attack=["fgsm", "pgd", "t-pgd:steps=3,temperature=1/2"], steps=7, restarts=2)
    _, pgd, tempered = (named.attack for named in made.attacks)
    assert (pgd.steps, pgd.restarts) == (7, 2)
    assert (tempered.steps, tempered.restarts, tempered.temperature) == (3, 2, 0.5)


def test_an_attack_may_have_a_norm_and_radius_of_its_own(task):
    made = plan(task, attack=["pgd", "pgd:norm=L2,eps=1"])
    assert [(n.label, n.attack.threat.norm, n.attack.threat.eps) for n in made.attacks] == [
        ("pgd", "linf", 0.1),
        ("pgd:norm=L2,eps=1", "l2", 1.0),
    ]
    with pytest.raises(UsageError, match="give eps with another norm"):
        plan(task, attack="pgd:norm=l2")


@pytest.mark.usefixtures("demanding")
def test_an_option_that_an_attack_demands_is_asked_for(task):
    with pytest.raises(UsageError, match="attack 'demanding': strength must be given"):
        plan(task, attack="demanding")
    assert plan(task, attack="demanding:strength=2").attacks[0].attack.strength == 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"attack": ["none", "pgd"]}, "none cannot be combined"),
        ({"attack": "pdg"}, "did you mean 'pgd'"),
        ({"noise": "gausian"}, "did you mean 'gaussian'"),
        ({"measure": "relative"}, "did you mean 'relative-error'"),
        ({"attack": "none", "eps_grid": "0,0.1"}, "--eps-grid needs an attack"),
        ({"eps_grid": "0,9"}, "larger than the whole input range"),
        ({"device": "gpu"}, "there are auto, cpu, cuda"),
        ({"plugin": ["nowhere.py"]}, "there is no file nowhere.py"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_it_costs_anything(task, options, says):
    with pytest.raises(UsageError, match=says):
        plan(task, **options)


def test_the_batch_that_fits_goes_by_the_size_of_the_inputs(task):
    assert plan(task).batch_size == 256
    body = nn.Sequential(nn.Conv2d(3, 2, 7, 32), nn.ReLU(), nn.Flatten(), nn.Linear(98, 2))
    large = make_plan(body, settings_from({"eps": 0.1}), {}, (torch.rand(4, 3, 224, 224), torch.tensor([0, 1, 0, 1])))
    assert large.batch_size == 16


@pytest.mark.parametrize("wrap", ["dict with features first", "squeezed score"])
def test_the_output_layer_is_no_hidden_layer_however_the_network_returns_it(task, wrap):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden, self.act = nn.Linear(16, 8), nn.ReLU()
            self.head = nn.Linear(8, 3 if wrap.startswith("dict") else 1)

        def forward(self, x):
            features = self.act(self.hidden(x.flatten(1)))
            output = self.head(features)
            return {"features": features, "logits": output} if wrap.startswith("dict") else output.squeeze(1)

    _, x, y = task
    made = make_plan(Wrapped(), settings_from({"eps": 0.1, "layers": "learnable"}), {}, (x, y % 2))
    assert [layer.name for layer in made.layers] == ["hidden"]


class Maximum(nn.Module):
    def forward(self, x):
        return torch.maximum(*x.chunk(2, 1))


@pytest.mark.parametrize(
    ("layers", "scanned", "says"),
    [
        ([nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)], ["2"], None),
        ([nn.Linear(16, 8), Maximum(), nn.Linear(4, 3)], ["1"], "hidden layers with weights are scanned"),
        ([nn.Linear(16, 3)], [], "no layer is scanned"),
        ([nn.Linear(16, 3), nn.Sigmoid()], [], "no layer is scanned"),
    ],
)
def test_a_network_without_hidden_activations_has_its_layers_with_weights_scanned(task, layers, scanned, says):
    _, x, y = task
    made = make_plan(nn.Sequential(nn.Flatten(), *layers), settings_from({"eps": 0.1}), {}, (x, y))
    assert [layer.name for layer in made.layers] == scanned
    said = [warning.message for warning in made.warnings if warning.code == "default-layers"]
    assert (says is None and not said) or says in said[0]


def test_layers_that_were_asked_for_and_do_not_exist_are_refused(task):
    _, x, y = task
    with pytest.raises(LayerError, match="no layer 'activations', as no module runs before its output; --layers none"):
        make_plan(
            nn.Sequential(nn.Linear(16, 3)), settings_from({"eps": 0.1, "layers": "activations"}), {}, (x.flatten(1), y)
        )


QUICK, FULL = ["fgsm", "apgd-ce:steps=10"], ["fgsm", "pgd", "t-pgd", "ranked-cascade"]


@pytest.mark.parametrize(
    ("option", "file", "attacks", "unused"),
    [
        ({"preset": "full"}, {"attack": ["pgd"]}, FULL, "the attacks listed in lsa.yaml are not used: --full"),
        ({"preset": "quick"}, {"attack": ["pgd"]}, QUICK, "the attacks listed in lsa.yaml are not used: --quick"),
        ({"attack": ["pgd"]}, {"preset": "full"}, ["pgd"], "preset full of lsa.yaml is not used: --attack"),
        ({"preset": "quick"}, {}, QUICK, None),
        ({}, {"preset": "full"}, FULL, None),
    ],
)
def test_of_a_preset_and_attacks_the_option_wins_over_the_file(task, option, file, attacks, unused):
    body, x, y = task
    common = {"threads": 1, "eps": 0.1}
    settings, origin = merge(("option", settings_from({**option, **common})), ("lsa.yaml", settings_from(file)))
    made = make_plan(body, settings, origin, (x, y))
    assert list(dict.fromkeys(named.spec for named in (*made.attacks, *made.cascade))) == attacks
    assert made.settings.attack == attacks
    assert made.network.origin["attack"] == ("option" if option else "lsa.yaml")
    told = [warning.message for warning in made.warnings if warning.code == "unused-setting"]
    assert [message.startswith(unused) for message in told] == ([True] if unused else [])


def test_a_preset_and_attacks_in_one_place_are_refused_before_the_checkpoint_is_read():
    both = settings_from({"preset": "full", "attack": ["pgd"]})
    with pytest.raises(UsageError, match=r"^--full chooses the attacks; leave out --attack, or --full$"):
        make_plan("there-is-none.pt", *merge(("option", both)))
    with pytest.raises(UsageError, match=r"^lsa.yaml: preset: full chooses the attacks; leave out attack, or"):
        make_plan("there-is-none.pt", *merge(("lsa.yaml", both)))


@pytest.mark.parametrize("preset", [None, "quick", "full"])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_where_no_attack_is_named_one_looks_for_the_smallest_change_in_l2_and_l1(task, norm, preset):
    made = plan(task, preset=preset, norm=norm, eps=0.1)
    kinds = [named.attack.kind for named in made.attacks]
    assert ("minimal" in kinds) == (norm != "linf")
    settings = made.settings.attack or []
    assert [named.spec for named in made.attacks] == [
        spec for spec in settings if spec != "ranked-cascade"
    ] or not preset


def test_general_options_leave_the_attack_of_the_smallest_change_alone_unless_it_is_named(task):
    options = {"norm": "l2", "eps": 0.1, "steps": 7, "step_size": 0.01}
    default = {named.label: settings_of(named.attack) for named in plan(task, **options).attacks}
    assert (default["pgd"]["steps"], default["pgd"]["step_size"]) == (7, 0.01)
    assert (default["fmn"]["steps"], default["fmn"]["step_size"]) == (100, 0.5)
    (named,) = plan(task, attack="fmn", **options).attacks
    assert (settings_of(named.attack)["steps"], settings_of(named.attack)["step_size"]) == (7, 0.01)


def test_quick_takes_what_there_is(task):
    body, x, y = task
    assert len(plan(task, preset="quick").index) == 60
    assert len(plan(task, preset="quick", limit=9).index) == 9
    many = (x.repeat(5, 1, 1, 1), y.repeat(5))
    assert len(make_plan(body, settings_from({"preset": "quick", "eps": 0.1}), {}, many).index) == 200
    with pytest.raises(UsageError, match="--limit 61 asks for more"):
        plan(task, preset="quick", limit=61)


@pytest.fixture
def moons(tmp_path):
    """A checkpoint that names its classes, and the same points labelled in the other order of names."""
    torch.manual_seed(0)
    body = moon_mlp()
    description = Description(
        architecture="lsa:moon-mlp", input_shape=[2], input_range=None, class_names=["upper", "lower"], norm="linf", eps=0.1
    )  # fmt: skip
    write_checkpoint(tmp_path / "m.pt", body, description)
    x = torch.randn(40, 2)
    with torch.no_grad():
        y = (body(x).squeeze(1) > body(x).median()).long().numpy()
    np.savez(tmp_path / "same.npz", x=x, y=y, class_names=np.array(["upper", "lower"]))
    np.savez(tmp_path / "swapped.npz", x=x, y=1 - y, class_names=np.array(["lower", "upper"]))
    np.savez(tmp_path / "three.npz", x=x, y=y, class_names=np.array(["a", "b", "c"]))
    return tmp_path


def test_labels_are_put_into_the_networks_order_of_classes_by_name(moons):
    def made(name):
        return make_plan(moons / "m.pt", settings_from({"data": f"npz:{moons}/{name}.npz"}), {})

    same, swapped = made("same"), made("swapped")
    assert same.network.class_names == swapped.network.class_names == ("upper", "lower")
    assert np.array_equal(same.network.labels, swapped.network.labels)
    assert any("order of classes" in note for note in swapped.network.notes)
    assert not any("order of classes" in note for note in same.network.notes)
    with pytest.raises(DataError, match="3 classes and the network has 2"):
        made("three")


def test_options_stand_over_what_the_checkpoint_says_and_the_origin_is_kept(moons):
    made = make_plan(moons / "m.pt", settings_from({"data": f"npz:{moons}/same.npz"}), {})
    assert (made.threat.norm, made.threat.eps, made.eps_origin) == ("linf", 0.1, "the checkpoint")
    assert made.threat.bounds is None
    assert [named.label for named in made.noises] == ["gaussian", "uniform", "speckle"]  # no range to salt
    given = settings_from({"data": f"npz:{moons}/same.npz", "eps": 0.2})
    assert make_plan(moons / "m.pt", given, {"eps": "option"}).threat.eps == 0.2


def test_a_checkpoints_radius_is_not_taken_for_another_norm(moons):
    settings = settings_from({"data": f"npz:{moons}/same.npz", "norm": "l2"})
    with pytest.raises(UsageError, match="no usual l2 radius"):
        make_plan(moons / "m.pt", settings, {"norm": "option"})


def test_a_radius_that_only_the_name_of_a_file_gives_is_told_loudly(task, tmp_path):
    body, x, y = task
    np.savez(tmp_path / "mnist.npz", x=x, y=y)
    made = make_plan(body, settings_from({"data": f"npz:{tmp_path}/mnist.npz"}), {})
    assert (made.threat.eps, made.eps_origin) == (0.3, "assumed")
    assert [w.code for w in made.warnings if "the data are called mnist" in w.message] == ["eps-assumed"]


def test_a_sample_limit_takes_a_stratified_subset_and_the_report_says_so(task):
    body, x, y = task
    report = audit(body, data=(x, y), eps=0.01, attack="fgsm", noise="none", threads=1, limit=9)
    assert (report.data.n, report.data.available) == (9, 60)
    assert report.data.selection == "stratified by class, seed 0"
    assert [row.clean.n for row in report.verdict.classes] == [3, 3, 3]
