"""Networks as users write them: several outputs, hooks, squeezes, checkpoints; and their faults, named for what they are."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import lsa_cli
from lsa_cli import audit
from lsa_cli.auditing.network import open_network
from lsa_cli.errors import BackwardError, CheckpointError, DataError, ForwardError, UsageError
from lsa_cli.settings import settings_from

CLASSES, N = 4, 48


class Net(nn.Module):
    """One convolution and a head, right on all of `data`."""

    def __init__(self, classes=CLASSES):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.conv, self.fc = nn.Conv2d(1, 6, 3, stride=2), nn.Linear(54, classes)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)

    def body(self, x):
        return F.relu(self.conv(x)).flatten(1)

    def forward(self, x):
        return self.fc(self.body(x))


def data(n=N, classes=CLASSES):
    x = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        z = Net(classes)(x)
    return x.numpy(), z.argmax(1).numpy()


def run(network, **options):
    given = {
        "data": data(),
        "normalize": "none",
        "eps": 0.05,
        "attack": ["fgsm"],
        "noise": ["none"],
        "threads": 1,
        "fast": False,
    }
    return audit(network, **{**given, **options})


def opened(network, given=None, **options):
    return open_network(network, settings_from({"normalize": "none", **options}), {}, given or data())


@pytest.fixture(scope="module")
def plain():
    return run(Net())


def figures(report):
    layers = [(row.name, row.mean) for outcome in report.outcomes if outcome.layers for row in outcome.layers.rows]
    return report.verdict.clean.value, report.verdict.robust.value, layers


# ---- which output holds the logits -----------------------------------------------------------------------


class Returning(Net):
    def __init__(self, make, **arguments):
        super().__init__(**arguments)
        self.make = make

    def forward(self, x):
        features = self.body(x)
        return self.make(features, self.fc(features))


OUTPUTS = {
    "features first": (lambda f, z: (f, z), "1"),
    "logits first": (lambda f, z: (z, f), "0"),
    "softmax first": (lambda f, z: (z.softmax(1), z), "1"),
    "log softmax last": (lambda f, z: (z, z.log_softmax(1)), "0"),
    "a loss": (lambda f, z: (z.square().mean(), z), "1"),
    "a dictionary": (lambda f, z: {"embedding": f, "class": z}, "class"),
    "nested": (lambda f, z: [{"maps": [f, f[:, :4]]}, (z,)], "1.0"),
    "as wide as the logits": (lambda f, z: (f[:, :4], z), "1"),
    "logits by name": (lambda f, z: {"second": z + 0.1 * f[:, :4], "logits": z}, "logits"),
    "twice": (lambda f, z: (z, z.clone()), "0"),
    "an auxiliary head": (lambda f, z: {"main": z, "aux": 2 * z}, "main"),
}


@pytest.mark.parametrize("make", OUTPUTS)
def test_the_logits_are_as_wide_as_the_classes_and_agree_with_the_labels(make, plain):
    function, place = OUTPUTS[make]
    report = run(Returning(function))
    assert figures(report) == figures(plain)
    told = [
        note for note in report.subject.notes if f"output {place} is taken as the logits, right on 48 of 48" in note
    ]
    assert len(told) == 1


def test_where_two_outputs_could_be_meant_the_user_is_asked(plain):
    network = Returning(lambda f, z: (f, z, 0.5 * z + 0.1))
    with pytest.raises(
        UsageError, match=r"returns 0 \(54\), 1 \(4\), 2 \(4\), and 2 of these .* choose one with output_index"
    ):
        run(network)
    assert figures(run(network, output_index=1)) == figures(plain)
    assert run(network, output_index="2").verdict.clean.value == 1
    with pytest.raises(CheckpointError, match="output_index=3: the network returns 0"):
        run(network, output_index=3)
    with pytest.raises(UsageError, match="returns one tensor"):
        run(Net(), output_index=0)


def test_probabilities_beside_logits_are_taken_when_asked_for():
    given = opened(Returning(lambda f, z: (z, z.softmax(1))), returns="probabilities")
    assert given.classifier.which == "1"


def test_one_score_beside_features_is_a_network_of_two_classes():
    x = data()[0]
    network = Returning(lambda f, z: (f, z[:, 0]))
    with torch.no_grad():
        y = (network(torch.from_numpy(x))[1] > 0).long().numpy()
    assert 0 < y.mean() < 1
    given = opened(network, (x, y))
    assert (given.classifier.which, given.classes) == ("1", 2)


# ---- networks that need something ------------------------------------------------------------------------


class Hooked(Net):
    def forward(self, x):
        features = self.body(x)
        features.register_hook(self.keep)
        return self.fc(features)

    def keep(self, gradient):
        self.gradient = gradient


class Retaining(Net):
    def forward(self, x):
        self.features = self.body(x)
        self.features.retain_grad()
        return self.fc(self.features)


class Squeezing(Net):
    def forward(self, x):
        return self.fc(self.body(x)[:, :, None, None].squeeze())


class OverwritingItsInput(Net):
    def forward(self, x):
        x *= 2
        x /= 2
        return super().forward(x)


@pytest.mark.parametrize("kind", [Hooked, Retaining, Squeezing, OverwritingItsInput])
def test_networks_that_need_gradients_or_neighbours_or_write_to_their_input(kind, plain):
    assert figures(run(kind())) == figures(plain)


class OneByOne(Net):
    def forward(self, x):
        assert len(x) == 1, "one image, please"
        return super().forward(x)


def test_a_network_whose_own_code_refuses_several_images_gets_one_at_a_time(plain):
    assert run(OneByOne(), layers="none").verdict.robust == plain.verdict.robust


def test_an_audit_does_not_depend_on_the_gradient_mode_of_its_caller(plain):
    (x, y), network = data(), Net()
    with torch.inference_mode():
        assert figures(run(network)) == figures(plain)
        assert lsa_cli.attack("pgd", eps=0.05, steps=2)(network, x, y).shape == x.shape
        with pytest.raises(CheckpointError, match=r"were made within torch\.inference_mode"):
            audit(nn.Linear(9, 2), data=(x, y))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_of_another_precision_are_answered_with_what_to_do(dtype):
    with pytest.raises(ForwardError, match=r"lsa's inputs are float32: give model\.float\(\)"):
        run(Net().to(dtype))


def test_one_sample_alone_and_the_last_of_a_batch_are_answered_as_in_a_batch():
    x, y = data()
    for arguments in (
        {"data": (x[:1], y[:1])},
        {"limit": 1},
        {"limit": 9, "batch_size": 4},
        {"limit": 3, "batch_size": 1},
    ):
        asked, beside = run(Squeezing(), **arguments), run(Net(), **arguments)
        assert asked.verdict == beside.verdict
    one = opened(Squeezing()).classifier
    assert torch.equal(one(torch.from_numpy(x[:1]))[0], one(torch.from_numpy(x[:2]))[0])


def test_a_network_in_memory_is_left_without_marks():
    network = Retaining()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    run(network)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert network.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("options", [{}, {"quick": True}, {"prove": True}, {"metrics": "intensity,eni,boundary"}])
def test_a_network_in_training_is_audited_in_evaluation_mode(options):
    """BatchNorm does not see the audit, and the numbers are those of the same network after eval()."""
    torch.manual_seed(0)
    x, y = torch.rand(40, 3, 8, 8), torch.arange(40) % 4
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 4))
    network(x)  # running statistics that are not those of the batch
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    given = {"data": (x, y), "eps": 0.02, "threads": 1, "no_fast": True, "noise": "none", **options}
    found = audit(network, **given)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert network.training
    after = audit(network.eval(), **given)
    assert found.verdict == after.verdict.model_copy(update={"proof": found.verdict.proof})
    assert (found.evidence, found.metrics) == (after.evidence, after.metrics)


# ---- faults ----------------------------------------------------------------------------------------------


class Reentrant(Net):
    def forward(self, x):
        return self.fc(checkpoint(self.body, x, use_reentrant=True))


class Overwriting(nn.Module):
    def forward(self, x):
        y = F.relu(x)
        z = y * y
        y += z
        return y - z


class Broken(Net):
    def __init__(self):
        super().__init__()
        self.act = Overwriting()

    def body(self, x):
        return self.act(self.conv(x)).flatten(1)


class _NoWay(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise NotImplementedError("no backward here")


class WithoutBackward(Net):
    def body(self, x):
        return _NoWay.apply(super().body(x))


@pytest.mark.filterwarnings("ignore:None of the inputs")
@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (Reentrant, r"RuntimeError: When use_reentrant=True, .*; call checkpoint with use_reentrant=False, or attack"),
        (
            Broken,
            r" in act \(Overwriting\), .*test_user_networks\.py line \d+: RuntimeError: one of the variables needed",
        ),
        (WithoutBackward, "NotImplementedError: no backward here"),
    ],
)
def test_a_backward_pass_that_fails_is_the_networks_own_and_square_is_a_way_out(kind, says):
    with pytest.raises(BackwardError, match=f"the network's own backward pass fails.*{says}.*attack=.square"):
        run(kind())
    found = run(kind(), attack=["square:queries=60"], limit=20, eps=0.3)
    assert found.verdict.clean.value == 1
    assert found.verdict.robust.value < 1
    assert found.verdict.robust == run(Net(), attack=["square:queries=60"], limit=20, eps=0.3).verdict.robust


class Stop(BaseException):
    pass


ERRORS = {
    "KeyError": lambda: {}["mask"],
    "AssertionError": lambda: (_ for _ in ()).throw(AssertionError("odd")),
    "SystemExit": lambda: sys.exit(0),
    "Stop": lambda: (_ for _ in ()).throw(Stop("now")),
    "StopIteration": lambda: next(iter(())),
    "RecursionError": lambda: ERRORS["RecursionError"](),
    "OSError": lambda: os.stat("/no/such/file"),
}


class Failing(Net):
    """From a given call on."""

    def __init__(self, error, calls):
        super().__init__()
        self.inner, self.error, self.calls = nn.Identity(), error, calls
        self.inner.register_forward_hook(self.fail)

    def fail(self, *_):
        self.calls -= 1
        if self.calls < 0:
            self.error()

    def body(self, x):
        return super().body(self.inner(x))


@pytest.mark.parametrize("calls", [0, 9])
@pytest.mark.parametrize("error", ERRORS)
def test_whatever_comes_out_of_a_forward_pass_is_the_networks_own(error, calls):
    name = "FileNotFoundError" if error == "OSError" else error
    with pytest.raises(ForwardError, match=f"own forward pass fails.* line \\d+: {name}") as told:
        run(Failing(ERRORS[error], calls), batch_size=8)
    assert told.value.exit_code == 2
    assert "data set" not in str(told.value)


def test_an_interrupt_in_a_forward_pass_is_an_interrupt():
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(Failing(interrupt, 2))


def test_a_second_argument_is_named():
    class Masked(Net):
        def forward(self, x, mask):
            return super().forward(x * mask)

    with pytest.raises(ForwardError, match=r"missing 1 required positional argument: 'mask'; .* fills in 'mask'"):
        run(Masked())


def test_images_of_another_shape_are_a_fault_of_the_data_and_the_shape_that_fits_is_named():
    x, y = np.zeros((4, 28, 28), np.float32), np.array([0, 1, 2, 3])
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(1800, 4))
    with pytest.raises(DataError, match=r"\(1, 28, 28\) .* does take 1x32x32: .*add input_size=32"):
        run(network, data=(x, y))
    odd = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(50, 4))
    with pytest.raises(DataError, match="shapes cannot be multiplied"):
        run(odd, data=(x, y))


# ---- files, as `python FILE.py` finds its neighbours -------------------------------------------------------

SMALL = "import torch\nfrom torch import nn\n"
NET = SMALL + (
    "class Net(nn.Module):\n"
    "    def __init__(self):\n"
    "        super().__init__()\n"
    "        self.fc = nn.Linear(16, 3)\n"
    "    def forward(self, x):\n"
    "        return SCALE * self.fc(x.flatten(1))\n"
)


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(3)
    weights = {"fc.weight": torch.randn(3, 16), "fc.bias": torch.zeros(3)}
    torch.save(weights, tmp_path / "net.pth")
    x = torch.rand(12, 4, 4)
    y = (x.flatten(1) @ weights["fc.weight"].T).argmax(1)
    np.savez(tmp_path / "d.npz", x_test=x.numpy(), y_test=y.numpy())
    return tmp_path


def logits(folder, arch):
    given = settings_from({"arch": arch, "normalize": "none", "data": f"npz:{folder}/d.npz"})
    network = open_network(folder / "net.pth", given, {})
    with torch.no_grad():
        return network.classifier(network.data.read(np.arange(3)))


def test_modules_beside_a_file_are_its_own_and_sys_path_is_as_before(folder):
    before, modules = list(sys.path), set(sys.modules)
    for name, scale in (("a", 2), ("b", 3)):
        (folder / name).mkdir()
        (folder / name / "settings.py").write_text(f"SCALE = {scale}\n")
        (folder / name / "net.py").write_text("from settings import SCALE\n" + NET)
    (folder / "late").mkdir()
    (folder / "late" / "settings.py").write_text("SCALE = 5\n")
    late = NET.replace("        return", "        from settings import SCALE\n        return")
    (folder / "late" / "net.py").write_text(late + "def make():\n    import settings\n    return Net()\n")
    two, three = (logits(folder, f"{folder}/{name}/net.py:Net") for name in "ab")
    torch.testing.assert_close(3 * two, 2 * three)
    torch.testing.assert_close(5 * two, 2 * logits(folder, f"{folder}/late/net.py:make"))
    assert sys.path == before
    assert "settings" not in set(sys.modules) - modules


@pytest.mark.parametrize("has_init", [True, False])
def test_relative_imports_in_a_package(folder, has_init):
    inner = folder / "pack_age" / "nets"
    inner.mkdir(parents=True)
    if has_init:
        (inner / "__init__.py").write_text("")
        (inner.parent / "__init__.py").write_text("")
    (inner / "base.py").write_text("from ..scale import SCALE\n" + NET)
    (inner.parent / "scale.py").write_text("SCALE = 1\n")
    (inner / "net.py").write_text("from .base import Net\n")
    (folder / "plain.py").write_text("SCALE = 1\n" + NET)
    assert torch.equal(logits(folder, f"{inner}/net.py:Net"), logits(folder, f"{folder}/plain.py:Net"))


def test_a_data_factory_and_a_plugin_find_their_neighbours_too(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "plain.py").write_text("SCALE = 1\n" + NET)
    (folder / "sub").mkdir()
    (folder / "sub" / "pixels.py").write_text("import torch\nX, Y = torch.rand(6, 4, 4), [0, 1, 2, 0, 1, 2]\n")
    (folder / "sub" / "mine.py").write_text(
        "from pixels import X\nimport numpy as np\n"
        "class Pairs:\n"
        "    def __len__(self): return 6\n"
        "    def __getitem__(self, row):\n"
        "        import pixels\n"
        "        return pixels.X[row][None], pixels.Y[row]\n"
    )
    (folder / "sub" / "plugin.py").write_text("import pixels\n")
    given = settings_from(
        {"arch": "plain.py:Net", "normalize": "none", "data": "sub/mine.py:Pairs", "plugin": "sub/plugin.py"}
    )
    assert len(open_network("net.pth", given, {}).data.read(np.arange(6))) == 6


def test_a_missing_module_is_named_with_what_was_searched(folder):
    (folder / "net.py").write_text("import no_such_module_anywhere\n")
    with pytest.raises(
        UsageError, match=r"No module named 'no_such_module_anywhere'; install it, or add .* PYTHONPATH"
    ):
        logits(folder, f"{folder}/net.py:Net")


def test_what_a_network_prints_is_no_part_of_the_report(folder):
    (folder / "net.py").write_text("SCALE = 1\nprint('imported')\n" + NET.replace("return", "print('asked'); return"))
    command = [sys.executable, "-m", "lsa_cli", "audit", "net.pth", "--arch", "net.py:Net", "--normalize", "none"]
    command += [
        "--data",
        "npz:d.npz",
        "--attack",
        "fgsm",
        "--noise",
        "none",
        "--layers",
        "none",
        "--eps",
        "0.1",
        "--json",
        "-",
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verdict"]["clean"]["value"] == 1
    assert "asked" in done.stderr
