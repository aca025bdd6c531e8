"""Options of `lsa harden`: what they do as said, what goes where, and the sentence for what does not fit."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.methods import PLAIN, ROWS, STUDIES, training_of
from lsa_cli import harden
from lsa_cli.attacks import make_threat
from lsa_cli.auditing.presets import chosen_attacks
from lsa_cli.errors import UsageError
from lsa_cli.hardening.cost import EpochCost
from lsa_cli.hardening.layer_selection import layers_to_regularize
from lsa_cli.hardening.plan import make_harden_plan
from lsa_cli.hardening.recipes import training_threat
from lsa_cli.models.checkpoint import read_checkpoint
from lsa_cli.report.storage import read_report
from lsa_cli.settings import HardenSettings, settings_from
from tests.cli.conftest import ROOT, lsa, refused  # noqa: F401  fixtures

MOON = ROOT / "sample_models" / "moon_mlp.pt"
BRIEF = ("--epochs", 1, "--threads", 1, "-n", 40)


FUNCTIONAL = """
import torch
class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
    def forward(self, x):
        return torch.relu(x + self.two(torch.relu(self.one(x))))
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.norm, self.c = torch.nn.Linear(2, 8), Block(), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2)
        self.act, self.d = torch.nn.ELU(), torch.nn.Linear(8, 8)
    def forward(self, x):
        x = torch.relu(self.norm(self.b(torch.relu(self.a(x)))))
        return self.c(self.act(self.d(self.act(x))))
"""


@pytest.fixture
def own_code(tmp_path):
    """A plan for a network of the user's own code, with functional activations and BatchNorm."""
    (tmp_path / "own.py").write_text(FUNCTIONAL)
    space = {}
    exec(FUNCTIONAL, space)
    torch.save(space["Net"]().state_dict(), tmp_path / "own.pth")
    generator = np.random.default_rng(0)
    parts = {"x_train": (80, 2), "x_test": (40, 2), "y_train": 80, "y_test": 40}
    made = {n: generator.random(size) if n[0] == "x" else np.arange(size) % 2 for n, size in parts.items()}
    np.savez(tmp_path / "own.npz", **made)
    own = {"arch": f"{tmp_path}/own.py:Net", "data": f"npz:{tmp_path}/own.npz", "eps": "0.1", "normalize": "none"}

    def plan(**harden):
        return make_harden_plan(tmp_path / "own.pth", settings_from({**own, "threads": 1, "harden": harden}), {})

    return plan


def planned(**own):
    return make_harden_plan(MOON, settings_from({"threads": 1, "limit": 40, "harden": own}), {})


@pytest.mark.parametrize(
    ("norm", "given", "attacks"),
    [
        (None, None, ["fgsm", "pgd"]),  # the norm of the checkpoint: linf
        ("l1", None, chosen_attacks(None, "l1")),
        ("l2", None, chosen_attacks(None, "l2")),
        ("l2", ["pgd"], ["pgd"]),
    ],
)
def test_the_attacks_of_the_audits(norm, given, attacks):
    settings = {
        "norm": norm,
        "attack": given,
        "step_size": 0.01,
        "threads": 1,
        "limit": 40,
        **({"eps": 0.4} if norm else {}),
    }
    plan = make_harden_plan(MOON, settings_from({k: v for k, v in settings.items() if v is not None}), {})
    found = {named.name: named.attack for named in plan.audit.attacks}
    assert list(found) == attacks
    assert found["pgd"].step_size == 0.01
    if given is None and norm is not None:
        assert found["fmn"].step_size is None  # a step that suits PGD is none for it


def test_in_l1_both_audits_are_those_of_lsa_audit(lsa):  # noqa: F811
    threat = ("--norm", "l1", "--eps", 0.6, "--threads", 1, "-n", 40)
    assert lsa("harden", MOON, *threat, "-o", "h.pt", "--base", "fgsm", "--epochs", 1).code == 0
    for checkpoint, written in ((MOON, "h.before.json"), ("h.pt", "h.after.json")):
        assert lsa("audit", checkpoint, *threat, "--noise", "none", "--json", "own.json").code == 0
        own, found = read_report("own.json"), read_report(written)
        assert (own.verdict.robust, own.protocol.attacks) == (found.verdict.robust, found.protocol.attacks)
        assert "fmn" in found.protocol.attacks


def test_planning_reads_the_checkpoint_once_for_training_and_audits(monkeypatch):
    from lsa_cli.auditing import network

    read = []
    monkeypatch.setattr(network, "read_checkpoint", lambda *args: read.append(args) or read_checkpoint(*args))
    plan = planned()
    assert len(read) == 1
    assert (plan.network.data.split, plan.audit.network.data.split) == ("train", "test")
    assert plan.network.classifier.body is plan.audit.network.classifier.body


# ---- --resume ------------------------------------------------------------------------------------------


def test_resume_before_the_first_state_starts_from_the_beginning(lsa, monkeypatch):  # noqa: F811
    from lsa_cli.hardening import run

    command = ("harden", MOON, "-o", "h.pt", *BRIEF, "--resume")
    audit, train = run.run_audit, run.train

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "run_audit", killed)
    stopped = lsa(*command[:-1])
    assert stopped.code == 130
    assert (
        "nothing is trained yet; to start again, run the same command; with --resume it keeps the audit" in stopped.err
    )
    audits = []
    monkeypatch.setattr(run, "run_audit", lambda *given, **options: audits.append(None) or audit(*given, **options))
    monkeypatch.setattr(run, "train", killed)
    assert lsa(*command[:-1]).code == 130
    assert len(audits) == 1
    monkeypatch.setattr(run, "train", train)
    result = lsa(*command)
    assert result.code == 0, result.err
    assert len(audits) == 2  # the one before is kept
    assert result.err.count("no state at h.state.pt yet: starting from the beginning") == 1
    again = lsa(*command)
    assert (again.code, "there is no interrupted training at h.state.pt" in again.err) == (2, True)


def test_a_run_killed_before_its_first_state_is_told_from_an_older_result(lsa, monkeypatch):  # noqa: F811
    from lsa_cli.hardening import run

    def killed(*_, **__):
        raise KeyboardInterrupt

    assert lsa("harden", MOON, "-o", "whole.pt", *BRIEF).code == 0
    shutil.copy(MOON, "h.pt")  # the older result
    command = ("harden", MOON, "-o", "h.pt", *BRIEF)
    assert lsa(*command, "--resume").code == 2  # nothing has been started
    audit = run.run_audit
    monkeypatch.setattr(run, "run_audit", killed)
    os.utime("h.pt", (2_000_000_000, 2_000_000_000))
    stopped = lsa(*command)
    assert (stopped.code, "h.pt of 2033-05-18 " in stopped.err) == (130, True)
    assert "and the files beside it will be replaced" in stopped.err
    monkeypatch.setattr(run, "run_audit", audit)
    other = lsa(*command, "--lr", "0.1", "--resume")
    assert (other.code, "not the run that was interrupted: lr was 0.001 and is 0.1" in other.err) == (2, True)
    result = lsa(*command, "--resume")
    assert result.code == 0, result.err
    assert "no state at h.state.pt yet: starting from the beginning" in result.err
    whole, found = (torch.load(path, weights_only=True)["state_dict"] for path in ("whole.pt", "h.pt"))
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    assert not os.path.exists("h.started.json")


def test_the_log_is_whole_after_a_kill_between_state_and_line(lsa, monkeypatch):  # noqa: F811
    from lsa_cli.hardening import trainer

    command = ("harden", MOON, "-o", "h.pt", "--epochs", 2, "--threads", 1, "-n", 40)
    save = trainer.Training.save

    def save_and_die(self):
        save(self)
        if len(self.history) == 2:
            raise KeyboardInterrupt

    older = [Path(f"h.{end}") for end in ("pt", "last.pt", "before.json", "after.json", "compare.json", "log.jsonl")]
    for file in older:
        file.write_text("an older result")
    monkeypatch.setattr(trainer.Training, "save", save_and_die)
    assert lsa(*command).code == 130
    assert {file.read_text() for file in older} == {"an older result"}
    monkeypatch.setattr(trainer.Training, "save", save)
    resumed = lsa(*command, "--resume")
    assert (resumed.code, "audit before" in resumed.err) == (0, False)
    assert "the training had ended after epoch 2 of 2" in resumed.err
    with open("h.log.jsonl") as file:
        assert [json.loads(line)["epoch"] for line in file] == [1, 2]
    assert {read_report(f"h.{end}.json").data.n for end in ("before", "after")} == {40}
    assert sorted(Path().glob("h.*")) == sorted(older)


# ---- the watchdog ----------------------------------------------------------------------------------------


def test_a_loss_that_stops_being_finite_leaves_the_best_epoch_and_its_words(lsa, monkeypatch):  # noqa: F811
    from lsa_cli.hardening import trainer

    save, update = trainer.Training.save, trainer.Training.update

    def break_down(self, batch, count):
        update(self, batch, count)
        if self.step == self.per_epoch + 3:
            with torch.no_grad():
                next(self.model.parameters()).fill_(float("nan"))

    def save_and_die(self):
        save(self)
        if len(self.history) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer.Training, "update", break_down)
    monkeypatch.setattr(trainer.Training, "save", save_and_die)
    command = (
        "harden",
        MOON,
        "-o",
        "h.pt",
        "--method",
        "at",
        "--base",
        "fgsm",
        "--epochs",
        4,
        "--warmup",
        0,
        "--threads",
        1,
        "-n",
        20,
    )
    assert lsa(*command).code == 130
    monkeypatch.setattr(trainer.Training, "save", save)
    result = lsa(*command, "--resume")
    assert (result.code, "stopped early: the loss is not finite; a smaller --lr" in result.err) == (3, True), result.err
    with open("h.log.jsonl") as file:
        log = [json.loads(line, parse_constant=pytest.fail) for line in file]
    assert [line["loss"] is None for line in log] == [False, True]
    assert {"h.pt", "h.last.pt", "h.after.json", "h.compare.json"} <= set(os.listdir())
    assert not os.path.exists("h.state.pt")
    handed_out, last = (read_checkpoint(name).description.history[-1] for name in ("h.pt", "h.last.pt"))
    assert (handed_out["epoch"], handed_out["held_out"]) == (1, log[0])
    assert (last["epoch"], last["held_out"]["parts"]) == (2, {"J": None})


def test_a_training_that_never_learns_leaves_the_network_as_it_was(lsa):  # noqa: F811
    options = ("--method", "at", "--base", "fgsm", "--lr", 3, "--epochs", 6, "--threads", 1, "-n", 20)
    result = lsa("harden", MOON, "-o", "h.pt", *options)
    assert (result.code, "stopped early: not learning: clean accuracy has been at chance" in result.err) == (3, True)
    assert "saved: h.pt (the network before training), and beside it the last epoch, both audits" in result.err
    before, after = (torch.load(path, weights_only=True)["state_dict"] for path in (MOON, "h.pt"))
    assert all(torch.equal(after[name], before[name]) for name in before)
    entry = read_checkpoint("h.pt").description.history[-1]
    assert (entry["epoch"], entry["held_out"], entry["stopped"][:12]) == (0, None, "not learning")


@pytest.mark.parametrize(
    ("own", "epochs", "rate"),
    [
        ({}, 17, 0.004),  # 226 updates in an epoch: 3,842
        ({}, 18, 0.002),  # 4,068
        ({"lr": 0.002}, 4, 0.002),
        ({"batch_size": 128}, 4, 0.002),
        ({"optimizer": "sgd"}, 4, 0.002),
        ({"base": "fast"}, 4, 0.002),
        ({"method": "class-fair"}, 4, 0.004),
    ],
)
def test_few_updates_of_grey_images_have_a_larger_learning_rate_unless_it_is_given(own, epochs, rate, samples):
    plan = make_harden_plan(samples / "mnist_cnn.pt", settings_from({"threads": 1, "limit": 10, "harden": own}), {})
    assert plan.with_epochs(epochs).recipe.lr == rate
    assert plan.with_epochs(18).with_epochs(epochs).recipe.epochs == epochs


def test_the_learning_rate_of_vectors_does_not_depend_on_the_updates(samples):
    plan = make_harden_plan(samples / "moon_mlp.pt", settings_from({"threads": 1, "limit": 10, "harden": {}}), {})
    assert plan.with_epochs(1).recipe.lr == plan.with_epochs(10_000).recipe.lr == 0.001


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_short_training_that_ruins_the_network_leaves_it_as_it_was(lsa, epochs):  # noqa: F811
    """The watchdog waits for three epochs at chance, which a short training does not have."""
    options = ("--method", "at", "--base", "fgsm", "--lr", 100, "--epochs", epochs, "--threads", 1, "-n", 20)
    result = lsa("harden", MOON, "-o", "h.pt", *options)
    assert (result.code, "stopped early: not learning: clean accuracy was" in result.err) == (3, True), result.err
    assert "use a smaller --lr" in result.err
    before, after = (torch.load(path, weights_only=True)["state_dict"] for path in (MOON, "h.pt"))
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not os.path.exists("h.state.pt")


def test_the_layers_that_the_user_named_and_the_weights_that_train_are_said(lsa):  # noqa: F811
    named = lsa("harden", MOON, "-o", "h.pt", "--layers", "elu2", "--train-only", "flagged", *BRIEF)
    assert named.code == 0, named.err
    assert "layers named: elu2" in named.err
    assert "only the weights of fc2 train" in named.err
    last, first = (torch.load(path, weights_only=True)["state_dict"] for path in ("h.last.pt", MOON))
    assert {name.rpartition(".")[0] for name in last if not torch.equal(last[name], first[name])} == {"fc2"}


def test_a_stop_is_told_even_if_what_it_left_cannot_be_audited(refused, monkeypatch):  # noqa: F811
    from lsa_cli.hardening import run, trainer

    audits = []

    def audit_once(*arguments, **options):
        audits.append(None)
        if len(audits) == 2:
            raise UsageError("the network is dead")
        return audit(*arguments, **options)

    audit = run.run_audit
    monkeypatch.setattr(run, "run_audit", audit_once)
    monkeypatch.setattr(trainer, "trouble", lambda history, chance: "not learning; use a smaller --lr")
    refused(
        "harden", MOON, "-o", "h.pt", "--method", "at", "--base", "fgsm", *BRIEF, code=3,
        says="stopped early: not learning; use a smaller --lr; h.pt holds epoch 1, which cannot be audited: the network is dead",
        leaves=("h.pt", "h.last.pt", "h.before.json", "h.log.jsonl", "h.started.json", "h.state.pt"),
    )  # fmt: skip


# ---- the study of all methods --------------------------------------------------------------------------


@pytest.mark.parametrize("study", STUDIES)
def test_every_row_of_the_methods_study_is_given_what_it_uses(study, samples):
    taken = {row: training_of(row, STUDIES[study]) for row in ROWS if row != PLAIN}
    for row, training in taken.items():
        make_harden_plan(
            samples / "mnist_cnn.pt",
            settings_from({"threads": 1, "limit": 10, "harden": {"method": row, **training}}),
            {},
        )
    idle = {row for row, training in taken.items() if training != STUDIES[study].training}
    assert idle == ({"at:base=apart", "anp"} if study == "cifar10" else set())


def test_a_network_that_cannot_be_audited_leaves_nothing(refused, tmp_path):  # noqa: F811
    dead = torch.load(MOON, weights_only=True)
    dead["state_dict"] = {name: torch.zeros_like(value) for name, value in dead["state_dict"].items()}
    torch.save(dead, tmp_path / "dead.pt")
    moons = f"npz:{MOON.parent / 'moons.npz'}"
    refused("harden", tmp_path / "dead.pt", "-o", "h.pt", "--data", moons, *BRIEF, says="the same output for all")


# ---- layers and their weights --------------------------------------------------------------------------


def test_a_weight_can_name_the_layer_that_is_held_by_default():
    plan = planned(gamma="elu1=0.2")
    assert plan.task(("elu1",)).gammas == (0.2,)


@pytest.mark.parametrize(("hold", "layer"), [(None, "elu1"), ("first", "elu1"), ("last", "elu3")])
def test_a_layer_is_held_by_its_place(hold, layer):
    settings = {} if hold is None else {"hold": hold}
    assert layers_to_regularize(planned(**settings), lambda message: None) == (layer,)


def test_the_first_layer_that_is_held_is_one_that_training_moves():
    assert layers_to_regularize(planned(freeze=["fc1"]), lambda message: None) == ("elu2",)


def test_weights_of_layers_that_a_scan_flags_are_matched_once_these_are_known():
    plan = planned(gamma="elu1=0.2,elu2=0.1", hold="mvl")
    assert plan.task(("elu2", "elu1")).gammas == (0.1, 0.2)
    with pytest.raises(UsageError, match="must give one weight of 0 or more to each of elu3"):
        plan.task(("elu3",))


@pytest.mark.parametrize(
    ("gamma", "says"),
    [("elu9=1", "unknown layer 'elu9'"), ("elu1=x", "'x' is not a number"), ("elu1=-1", "0 or more")],
)
def test_numbers_and_names_of_weights_are_checked_before_a_scan(gamma, says):
    with pytest.raises(UsageError, match=says):
        planned(gamma=gamma, hold="mvl")


def test_batch_norm_of_vectors_is_not_trained_on_single_samples(own_code):
    with pytest.raises(UsageError, match=r"--batch-size 1: norm is BatchNorm1d, .* --freeze norm"):
        own_code(batch_size=1)
    assert own_code(batch_size=1, freeze=["norm"]).recipe.batch_size == 1  # in evaluation mode it takes no mean
    assert own_code(batch_size=2).recipe.batch_size == 2


def test_several_layers_and_frozen_parameters_split_on_commas(lsa):  # noqa: F811
    result = lsa("harden", MOON, "-o", "h.pt", *BRIEF, "--layers", "elu1,elu2", "--freeze", "fc1,fc2")
    assert result.code == 0, result.err
    entry = read_checkpoint("h.pt").description.history[-1]
    assert (entry["layers"], entry["freeze"]) == (["elu1", "elu2"], ["fc1", "fc2"])


@pytest.fixture
def few(tmp_path):
    """A tenth of the moons: what is looked at here is names."""
    with np.load(MOON.parent / "moons.npz") as moons:
        np.savez(tmp_path / "few.npz", **{n: moons[n][::10] if n[1] == "_" else moons[n] for n in moons.files})
    return ("--data", "npz:few.npz", "-n", 10, "--base", "fgsm", "--epochs", 1, "--threads", 1)


@pytest.mark.parametrize("method", ["self-gradient:sites=elu1", "learn2perturb"])
def test_layers_have_the_same_names_before_and_after_the_network_is_wrapped(lsa, few, method):  # noqa: F811
    result = lsa("harden", MOON, "-o", "h.pt", *few, "--method", method)
    assert result.code == 0, result.err
    before, after = (read_report(f"h.{when}.json").outcomes[0].layers for when in ("before", "after"))
    assert {row.name for row in before.rows} == {"elu1", "elu2", "elu3"}
    assert {row.name for row in before.rows} <= {row.name for row in after.rows}
    audited = lsa("audit", "h.pt", "--attack", "fgsm", "--layers", "elu1", "-n", 10, "--threads", 1, "--json", "h.json")
    assert audited.code == 0, audited.err
    # Its report names layers to regularize, and what is frozen has the names that it had.
    own = {"threads": 1, "harden": {"mvl": "h.json", "freeze": ["fc1", "fc2.*"]}}
    plan = make_harden_plan("h.pt", settings_from(own), {})
    moving = plan.trainable(plan.layers)
    assert plan.layers == ("elu1",)
    assert {name for name in moving if "fc" in name} == {
        f"body.network.fc{n}.{p}" for n in (3, 4) for p in ("weight", "bias")
    }


def test_all_weights_may_be_frozen_where_a_method_adds_its_own(lsa, few):  # noqa: F811
    command = ("harden", MOON, *few, "--freeze", "fc*", "--method")
    result = lsa(*command, "self-gradient", "-o", "h.pt")
    assert result.code == 0, result.err
    before, after = (torch.load(name)["state_dict"] for name in (MOON, "h.last.pt"))
    assert all(torch.equal(tensor, after[f"network.{name}"]) for name, tensor in before.items())
    assert all(tensor.any() for name, tensor in after.items() if name.startswith("maps."))  # they start at zero
    refused_at = lsa(*command, "at", "-o", "a.pt")
    assert (refused_at.code, "no parameter is left to train" in refused_at.err) == (2, True)


# ---- schedules, samples --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "trained"),
    [
        (":relu", "a"),
        ("b:relu", "b.one"),
        ("b:relu#2", "b.two"),
        (":relu#2", "b.two"),
        ("act#2", "d"),
        ("norm", "norm"),
    ],
)
def test_a_flagged_activation_trains_the_layer_with_weights_before_it(own_code, layer, trained):
    plan = own_code(layers=[layer], train_only="flagged")
    assert plan.trainable(plan.layers) == {f"body.{trained}.weight", f"body.{trained}.bias"}


@pytest.mark.parametrize("method", ["anp", "anp+at"])
def test_a_schedule_of_the_method_goes_to_the_method(method):
    plan = planned(method=method, schedule="official")
    assert (plan.options["schedule"], plan.recipe.schedule) == ("official", "one-cycle")
    plan = planned(method=method, schedule="cosine")
    assert ("schedule" in plan.options, plan.recipe.schedule) == (False, "cosine")


def test_what_is_said_of_the_held_out_part_is_done(tmp_path):
    with np.load(MOON.parent / "moons.npz") as moons:
        arrays = {name: moons[name] for name in moons.files}
    many = {name: np.concatenate([arrays[name]] * 10) for name in ("x_train", "y_train")}
    np.savez(tmp_path / "many.npz", **{**arrays, **many})
    settings = {"threads": 1, "limit": 40, "data": f"npz:{tmp_path / 'many.npz'}", "eps": 0.3}
    total = len(many["y_train"])
    for share, held_out in ((None, 1000), (0.5, total // 2)):
        plan = make_harden_plan(MOON, settings_from({**settings, "harden": {"val_fraction": share}}), {})
        assert len(plan.validation) == held_out


@pytest.mark.parametrize(
    ("norm", "eps", "shape", "own", "radius"),
    [
        ("linf", 0.3, (1, 28, 28), {}, 0.33),
        ("linf", 0.38, (1, 28, 28), {}, 0.4),
        ("linf", 0.45, (1, 28, 28), {}, 0.45),
        ("l2", 1.5, (1, 28, 28), {}, 1.5),
        ("linf", 8 / 255, (3, 32, 32), {}, 8 / 255),
        ("linf", 0.3, (2,), {}, 0.3),
        ("linf", 0.3, (1, 28, 28), {"base": "fast"}, 0.3),
        ("linf", 0.3, (1, 28, 28), {"train_eps": 0.1}, 0.1),
        ("l2", 0.5, (3, 32, 32), {"train_eps": 1.0, "base": "fast"}, 1.0),
    ],
)
def test_the_radius_of_the_training_attack(norm, eps, shape, own, radius):
    base = own.pop("base", "pgd")
    assert training_threat(HardenSettings(**own), make_threat(norm, eps), shape, base).eps == pytest.approx(radius)


def test_held_out_samples_are_attacked_at_the_radius_of_the_audit(lsa):  # noqa: F811
    lsa("harden", MOON, *BRIEF, "--eps", 0.3, "--train-eps", 1e-6, "-o", "a.pt")
    description = read_checkpoint("a.pt").description
    assert description.eps == 0.3
    entry = description.history[-1]
    assert (entry["eps"], entry["train_eps"]) == (0.3, 1e-6)
    epoch = json.loads(Path("a.log.jsonl").read_text().splitlines()[0])
    assert epoch["clean"] > 0.9
    assert epoch["robust"] < epoch["clean"] - 0.1


# ---- refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--base", "fgsm", "--steps", 3), "--steps: base fgsm does not use it"),
        (("--base", "fast", "--step-size", "0.1"), "--step-size: base fast does not use it"),
        (("--base", "free", "--steps", 3), "--steps: base free does not use it"),
        (("--base", "apart", "--steps", 3), "--steps: base apart does not use it"),
        (("--base", "apgd", "--step-size", "0.1"), "--step-size: base apgd does not use it"),
        (("--method", "at:base=fgsm", "--steps", 3), "--steps: base fgsm does not use it"),
        (("--method", "anp", "--train-eps", 0.2), "--train-eps: anp without a base attacks nothing"),
        (("--train-eps", 0), "must be above 0"),
        (("--method", "anp", "--steps", 3), "--steps: anp without a base attacks nothing"),
        (("--schedule", "official"), "at has none"),
        (("--method", "anp:schedule=ours", "--schedule", "official"), "both name the schedule of anp"),
        (("--method", "class-fair", "--layers", "elu1"), "use class-fair-lr"),
        (("--method", "class-fair", "--gamma", "1"), "such as class-fair-lr"),
        (("--method", "learn2perturb", "--gamma", "1"), "--method learn2perturb:gamma=1"),
        (("--method", "class-fair:rule=offset"), "offset=true"),
        (("--top-k", 99), ("--top-k 99", "3 layers")),
    ],
)
def test_what_does_not_fit_is_refused(refused, options, says):  # noqa: F811
    refused("harden", MOON, "--threads", 1, "-n", 20, *options, says=says)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("harden: 5\n", ("line 1", "harden: must be a mapping")),
        ("harden:\n  epochs: 1\n  gama: 1\n", ("line 3", "unknown key of harden 'gama': did you mean 'gamma'")),
        ("harden:\n  epochs: 0\n", ("line 2", "harden: epochs: must be at least 1")),
        ("harden:\n  epochs: 1\n  method: ''\n", ("line 3", "harden: method: is empty")),
        ("harden:\n  layers: ['']\n", ("line 2", "harden: layers: is empty")),
        ("metrics: ''\n", ("line 1", "metrics: is empty")),
    ],
)
def test_a_key_within_a_section_is_named(refused, tmp_path, text, says):  # noqa: F811
    (tmp_path / "own.yaml").write_text(text)
    refused("check", "own.yaml", says=says)


def test_an_audit_refuses_more_layers_than_there_are(refused):  # noqa: F811
    refused("audit", MOON, "--threads", 1, "-n", 20, "--top-k", 99, says=("--top-k 99", "3 layers"))


# ---- lsa audit --harden --------------------------------------------------------------------------------


def chained(lsa, harden, *options, attack="pgd:steps=3"):  # noqa: F811
    """Audit, then harden by these lines under `harden:`; what the result says of itself, and the run."""
    with open("own.yaml", "w") as file:
        file.write("harden:\n  epochs: 1\n" + "".join(f"  {line}\n" for line in harden))
    result = lsa(
        "audit", MOON, "-n", 40, "--attack", attack, "--noise", "none", "--threads", 1, "--harden", "h.pt",
        "--config", "own.yaml", *options,
    )  # fmt: skip
    return read_checkpoint("h.pt").description.history[-1] if os.path.exists("h.pt") else None, result


@pytest.mark.parametrize("line", ["hold: mvl", "top_k: 1", "mvl: other.json"])
def test_a_rule_in_the_file_gives_way_to_the_layers_just_flagged(lsa, line):  # noqa: F811
    entry, result = chained(lsa, [line])
    assert result.code == 0, result.err
    assert f"{line.partition(':')[0]} under harden: is replaced by the layers that this audit flags" in result.err
    with open("moon_mlp.audit.json") as file:
        assert entry["layers"] == json.load(file)["outcomes"][0]["layers"]["mvl"]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["method: at"], {"method": "at", "layers": [], "base": "pgd", "steps": 3}),
        (["method: class-fair"], {"method": "class-fair", "layers": [], "base": "pgd"}),
        (["method: at-lr:base=trades"], {"base": "trades", "steps": 10}),
        (["base: trades", "steps: 2"], {"base": "trades", "steps": 2}),
        (["layers: [elu1, elu2]"], {"layers": ["elu1", "elu2"], "base": "pgd", "steps": 3}),
        (["method: anp", "schedule: official"], {"method_options": {"schedule": "official"}, "schedule": "one-cycle"}),
    ],
)
def test_method_base_and_layers_of_the_file_are_respected(lsa, lines, expected):  # noqa: F811
    entry, result = chained(lsa, lines)
    assert result.code == 0, result.err
    assert {name: entry[name] for name in expected} == expected


def test_steps_that_the_base_just_found_does_not_use_give_way(lsa):  # noqa: F811
    entry, result = chained(lsa, ["steps: 4"], attack="fgsm")
    assert result.code == 0, result.err
    assert entry["base"] == "fgsm"
    assert "steps under harden: is not used by base fgsm" in result.err


@pytest.mark.parametrize(
    ("lines", "options", "says"),
    [
        (["method: at", "hold: mvl"], (), "at regularizes none"),
        (["method: at", "gamma: 1"], (), "--gamma is for methods with the regularizer"),
        (["gamma: elu9=1"], (), "unknown layer 'elu9'"),
        (["base: fgsm", "steps: 3"], (), "--steps: base fgsm does not use it"),
        ([], ("--layers", "none"), "--harden regularizes the most vulnerable layers, and this audit scans none"),
        (["freeze: conv*"], (), "matches no parameter"),
    ],
)
def test_what_cannot_be_hardened_is_refused_before_the_audit(lsa, lines, options, says):  # noqa: F811
    _, result = chained(lsa, lines, *options)
    assert result.code == 2
    assert says in result.err
    assert not os.path.exists("moon_mlp.audit.json")


@pytest.mark.parametrize(
    ("outputs", "says"),
    [
        (("--json", "h.pt"), "--json h.pt is a file that the hardening writes"),
        (("--json", "h.before.json"), "--json h.before.json is a file that the hardening writes"),
        (("--html", "h.log.jsonl"), "--html h.log.jsonl is a file that the hardening writes"),
        (("--json", "x", "--html", "x"), "--html x is already where --json goes"),
        (
            ("--csv", "d", "--samples", "d/layers.csv"),
            "--csv d would write d/layers.csv, which is already where --samples",
        ),
        (("--csv", "d", "--data", "csv:d/layers.csv"), "--csv d would write d/layers.csv, which is what is read here"),
        (("--html", "moons.npz", "--data", "npz:moons.npz"), "--html moons.npz is what is read here"),
    ],
)
def test_no_output_of_an_audit_is_a_file_of_its_hardening_or_another_output(refused, tmp_path, outputs, says):  # noqa: F811
    (tmp_path / "d").mkdir()
    refused("audit", MOON, "--threads", 1, "-n", 20, "--harden", "h.pt", *outputs, says=says)


@pytest.mark.parametrize("how", [(), ("--quiet",)])
def test_a_report_on_stdout_stands_there_alone(lsa, how):  # noqa: F811
    _, result = chained(lsa, [], "--json", "-", *how)
    assert result.code == 0, result.err
    assert json.loads(result.out)["status"] == "complete"
    assert ("robust" if how else "Before and after") in result.err


@pytest.mark.parametrize(("limit", "code"), [("robust=0.99", 1), ("robust=0.0", 3)])
def test_a_breached_gate_keeps_its_exit_code_where_hardening_breaks(lsa, limit, code, monkeypatch):  # noqa: F811
    from lsa_cli.errors import RunError
    from lsa_cli.hardening import run

    def broken(*_, **__):
        raise RunError("the disk is full")

    monkeypatch.setattr(run, "run_harden", broken)
    _, result = chained(lsa, [], "--fail-under", limit)
    assert result.code == code
    assert "error: the disk is full" in result.err
    assert "robust" in result.out
    assert os.path.exists("moon_mlp.audit.json")


def test_what_a_file_says_of_audits_is_not_meant_for_training():
    settings = settings_from(
        {"threads": 1, "limit": 40, "split": "test", "full_on": 5, "gate": {"robust.apgd-ce": 0.1}, "harden": {}}
    )
    plan = make_harden_plan(MOON, settings, {"split": "lsa.yaml"})
    assert (plan.network.data.split, plan.audit.network.data.split) == ("train", "test")
    assert "split test of lsa.yaml is for audits; training takes the split train" in plan.notes
    assert plan.audit.limits == {}


# ---- the budget of time ------------------------------------------------------------------------------------


def test_a_resumed_training_keeps_the_epochs_that_its_budget_gave_it(lsa, monkeypatch):  # noqa: F811
    from lsa_cli.hardening import trainer
    from lsa_cli.hardening.state import identity_in

    save = trainer.Training.save

    def save_and_die(self):
        save(self)
        raise KeyboardInterrupt

    command = ("harden", MOON, "-o", "h.pt", "--method", "at", "--base", "fgsm", "--threads", 1, "-n", 20)
    monkeypatch.setattr(trainer.Training, "save", save_and_die)
    assert lsa(*command, "--budget", "2s").code == 130
    epochs = identity_in(Path("h.state.pt"))["epochs"]
    monkeypatch.setattr(trainer.Training, "save", save)
    assert lsa(*command, "--budget", "30m", "--resume").code == 0
    assert read_checkpoint("h.pt").description.history[-1]["epochs"] == epochs


def test_epochs_fill_the_budget_and_there_is_at_least_one():
    each = EpochCost(passes=4, seconds=10)
    assert [each.epochs_in(seconds) for seconds in (1, 19, 20, 600)] == [1, 1, 2, 60]


def test_the_plan_states_the_passes_of_a_sample(lsa):  # noqa: F811
    """An update of FGSM training is two forward passes, and at-lr needs one more, of the clean images."""
    options = ("-o", "h.pt", "--base", "fgsm", "--epochs", 1, "--threads", 1, "-n", 20)
    for method, passes in (("at", 2), ("at-lr", 3)):
        assert f"about {passes} passes for each sample" in lsa("harden", MOON, "--method", method, *options).err


def test_settings_of_audits_that_a_hardening_does_not_use_are_named(tmp_path, lsa):  # noqa: F811
    (tmp_path / "lsa.yaml").write_text("gate: {robust: 0.9}\nfull: true\neta: 2\nattack: [fgsm]\neps: 0\n")
    result = lsa("harden", MOON, "--config", tmp_path / "lsa.yaml", "-o", tmp_path / "h.pt")
    assert (result.code, "--eps 0 allows no" in result.err) == (2, True)  # before anything runs
    note = next(line for line in result.err.splitlines() if "change nothing in a hardening" in line)
    assert note.startswith("lsa: full, gate of ")
    assert "eta" not in note
    with pytest.raises(UsageError, match="gate is for audits"):
        harden(MOON, tmp_path / "h.pt", gate={"robust": 0.9})
