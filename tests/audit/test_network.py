"""The network of a file with its data: classes by name, input ranges, flattened input, trusted code, image sizes."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lsa_cli.auditing.network import match_classes, open_network
from lsa_cli.data import from_object
from lsa_cli.errors import CheckpointError, DataError, UsageError
from lsa_cli.models.architectures import mnist_cnn
from lsa_cli.models.checkpoint import Description, read_checkpoint, write_checkpoint
from lsa_cli.models.hostile import is_hostile
from lsa_cli.settings import settings_from


def labelled(names, labels=(0, 1, 2)):
    data = from_object((np.zeros((len(labels), 4, 4), np.float32), np.array(labels)), "test")
    object.__setattr__(data, "class_names", names)
    return data


def matched(names, own, classes=3, how=None, labels=(0, 1, 2)):
    notes = []
    found, shown = match_classes(labelled(names, labels), own, classes, how, notes)
    return found.tolist(), shown, notes


# ---- classes by name -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [("Dog", "t-shirt", "big cat"), ("dog", "T Shirt", "big_cat"), ("dog - 1", "t-shirt top", "bigcat")],
)
def test_labels_follow_their_names(names):
    own = ("big cat", "dog", "t-shirt")
    if names[0] == "dog - 1":
        own = ("bigcat", "dog", "t-shirt")
    found, shown, notes = matched(names, own)
    assert found == [1, 2, 0]
    assert shown == own
    assert len(notes) == 1


def test_torchvisions_digits_are_digits():
    names = ("0 - zero", "1 - one", "2 - two")
    assert matched(names, ("0", "1", "2")) == ([0, 1, 2], ("0", "1", "2"), [])
    assert matched(names, ("2", "1", "0"))[0] == [2, 1, 0]


def test_data_of_some_of_the_classes_is_enough_where_names_tell_which():
    found, shown, _ = matched(("c", "a"), ("a", "b", "c"), labels=(0, 1, 1))
    assert found == [2, 0, 0]
    assert shown == ("a", "b", "c")


@pytest.mark.parametrize("names", [("a", "b", "x"), ("x", "y", "z"), ("a", "A", "b")])
def test_names_that_do_not_match_are_refused_and_never_guessed(names):
    with pytest.raises(DataError, match="--match-classes number"):
        matched(names, ("a", "b", "c"))
    assert matched(names, ("a", "b", "c"), how="number") == ([0, 1, 2], ("a", "b", "c"), [])


def test_a_network_without_names_takes_as_many_classes_as_it_has_and_no_fewer():
    assert matched(("a", "b", "c"), None) == ([0, 1, 2], ("a", "b", "c"), [])
    with pytest.raises(DataError, match="2 classes, the network has 3 and names none"):
        matched(("a", "b"), None, labels=(0, 1, 1))
    assert matched(("a", "b"), None, labels=(0, 1, 1), how="number") == ([0, 1, 1], ("0", "1", "2"), [])
    with pytest.raises(DataError, match="3 classes and the network has 2"):
        matched(("a", "b", "c"), None, classes=2)


def test_labels_follow_an_order_that_is_given():
    assert matched(("a", "b", "c"), None, how="2,0,1")[:2] == ([2, 0, 1], ("b", "c", "a"))
    assert matched(("a", "b", "c"), ("x", "y", "z"), how="2,0,1")[:2] == ([2, 0, 1], ("x", "y", "z"))
    assert matched(None, None, classes=4, how="3,0,1")[:2] == ([3, 0, 1], ("0", "1", "2", "3"))
    for order in ("1,0", "3,0,1"):
        with pytest.raises(
            DataError, match=f"--match-classes {order}: give one output below 3 for each of the 3 classes"
        ):
            matched(("a", "b", "c"), None, how=order)


def test_labels_beyond_the_outputs_are_refused():
    with pytest.raises(DataError, match="label 3"):
        matched(None, None, labels=(0, 1, 3))


# ---- what the network takes ----------------------------------------------------------------------------


class Probe(nn.Module):
    """Returns the smallest and the largest number that reached it."""

    def __init__(self):
        super().__init__()
        self.act = nn.ReLU()

    def forward(self, x):
        flat = x.flatten(1)
        return torch.stack([flat.amin(1), flat.amax(1)], 1) + 0 * self.act(flat[:, :2])


def opened(target, x, y, **settings):
    return open_network(target, settings_from({"eps": 0.1, **settings}), {}, (x, y))


class TurnsGrey(nn.Module):
    """Its only convolution takes grey images."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)

    def forward(self, x):
        return self.conv(x.mean(1, keepdim=True)).amax((2, 3))


class LastFirst(nn.Module):
    """The convolution that it calls first is the last one that it has."""

    def __init__(self):
        super().__init__()
        self.second, self.first = nn.Conv2d(1, 2, 1), nn.Conv2d(3, 1, 3)

    def forward(self, x):
        return self.second(self.first(x)).amax((2, 3))


@pytest.mark.parametrize("network", [TurnsGrey, LastFirst])
def test_images_are_not_refused_for_a_convolution_that_does_not_take_them(network):
    colour, grey = np.random.default_rng(0).random((4, 3, 8, 8), np.float32), np.zeros((4, 1, 8, 8), np.float32)
    labels = np.array([0, 1, 0, 1])
    assert opened(network(), colour, labels, normalize="none").input_shape == (3, 8, 8)
    if network is LastFirst:
        with pytest.raises(DataError):
            opened(network(), grey, labels, normalize="none")
    with pytest.raises(DataError, match="are in colour"):
        opened(nn.Sequential(nn.Conv2d(1, 2, 8), nn.Flatten()), colour, labels, normalize="none")


IMAGES = np.stack([np.zeros((4, 4)), np.ones((4, 4)), np.eye(4)]).astype(np.float32)


@pytest.mark.parametrize(
    ("settings", "black_and_white"),
    [
        ({}, (0.0, 1.0)),
        ({"input_range": "0,255"}, (0.0, 255.0)),
        ({"input_range": "-1,1"}, (-1.0, 1.0)),
        ({"input_range": [-1, 1]}, (-1.0, 1.0)),
        ({"input_range": "0,255", "normalize": "none"}, (0.0, 255.0)),
        ({"input_range": "0,255", "normalize": "127.5/50"}, (-2.55, 2.55)),
        ({"normalize": "0.5/0.25"}, (-2.0, 2.0)),
    ],
)
def test_black_and_white_reach_the_network_as_asked(settings, black_and_white):
    network = opened(Probe(), IMAGES, np.array([0, 1, 1]), **settings)
    out = network.classifier(torch.from_numpy(IMAGES)[:, None])
    torch.testing.assert_close(out[2], torch.tensor(black_and_white), atol=1e-4, rtol=1e-5)
    scaled = "input_range" in settings
    assert any("scaled" in note for note in network.notes) == scaled


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"input_range": "255"}, "LOW,HIGH"),
        ({"input_range": "1,0"}, "smaller"),
        ({"input_range": "0,255", "normalize": "imagenet"}, "MEAN/STD"),
        ({"weights": "ema"}, "in memory"),
        ({"trust_code": True}, "in memory"),
    ],
)
def test_ranges_and_options_that_make_no_sense(settings, says):
    with pytest.raises(UsageError, match=says):
        opened(Probe(), IMAGES, np.array([0, 1, 1]), **settings)


def test_a_network_of_vectors_gets_its_images_flattened_and_that_is_said():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    network = opened(body, IMAGES, np.array([0, 1, 2]))
    x = torch.from_numpy(IMAGES)[:, None]
    torch.testing.assert_close(network.classifier(x), body(x.flatten(1)))
    assert network.input_shape == (1, 4, 4)
    assert [layer.name for layer in network.layers if layer.is_activation] == ["1"]
    assert any("flattened to 16" in note for note in network.notes)
    with pytest.raises(DataError, match="cannot take inputs of shape"):
        opened(nn.Sequential(nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 3)), IMAGES, np.array([0, 1, 2]))


# ---- files ---------------------------------------------------------------------------------------------


def test_arguments_of_the_checkpoints_own_network_are_not_given_to_another(tmp_path):
    body = mnist_cnn(num_classes=4)
    described = Description(architecture="lsa:mnist-cnn", arch_args={"num_classes": 4}, input_shape=[1, 28, 28])
    write_checkpoint(tmp_path / "m.pt", body, described)
    data = (np.zeros((3, 28, 28), np.float32), np.array([0, 1, 3]))
    assert opened(tmp_path / "m.pt", *data).arch_args == {"num_classes": 4}
    (tmp_path / "net.py").write_text(
        "from lsa_cli.models.architectures import mnist_cnn\ndef four():\n    return mnist_cnn(4)\n"
    )
    network = opened(tmp_path / "m.pt", *data, arch=f"{tmp_path}/net.py:four")
    assert (network.arch, network.arch_args) == (f"{tmp_path}/net.py:four", {})


def test_trusting_names_what_it_imports_before_it_does(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n\nclass Mine(nn.Sequential):\n    pass\n\ndef build():\n"
        "    return Mine(nn.Flatten(), nn.Linear(16, 3), nn.ReLU())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import mine

    torch.save(mine.build(), tmp_path / "whole.pt")
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.ReLU()), tmp_path / "known.pt")
    said, data = [], (IMAGES, np.array([0, 1, 2]))
    settings = settings_from({"eps": 0.1})
    with pytest.raises(CheckpointError, match=r"would import mine\.Mine"):
        open_network(tmp_path / "whole.pt", settings, {}, data, said.append)
    assert open_network(tmp_path / "known.pt", settings, {}, data, said.append).arch.endswith("Sequential")
    assert said == []  # nothing was run
    trusted = settings_from({"eps": 0.1, "trust_code": True})
    assert open_network(tmp_path / "whole.pt", trusted, {}, data, said.append).arch == "mine.Mine"
    assert len(said) == 1
    assert "mine.Mine" in said[0]
    open_network(tmp_path / "known.pt", trusted, {}, data, said.append)
    assert len(said) == 1  # trusted, and yet there was nothing to run


@pytest.mark.parametrize(
    "name",
    ["posix.system", "os.system", "builtins.eval", "__builtin__.exec", "torch.os.system", "subprocess.Popen", "torch.hub.load",
     "builtins.__import__", "torch.serialization.load"],
)  # fmt: skip
def test_ways_to_the_system_are_told_from_what_checkpoints_hold(name):
    assert is_hostile(name)


def test_what_real_files_name_is_not_hostile(data_root):
    names = [
        "collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "argparse.Namespace", "numpy.core.multiarray.scalar",
        "pathlib.PosixPath", "builtins.getattr", "functools.partial", "timm.models.vision_transformer.VisionTransformer",
        "omegaconf.dictconfig.DictConfig", "mine.system.compile.Net", "datetime.datetime", "torch.nn.modules.activation.ReLU",
    ]  # fmt: skip
    for path in (data_root / "checkpoints").rglob("*.*"):
        names += read_checkpoint(path, "model" if "ema" in path.name else None).globals
    assert not [name for name in names if is_hostile(name)]


def test_a_program_shows_no_layers(tmp_path, lsa_audit):
    program = torch.jit.trace(nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.ReLU()), torch.zeros(2, 1, 4, 4))
    torch.jit.save(program, tmp_path / "p.pt")
    data = (IMAGES, np.array([0, 1, 2]))
    with pytest.raises(CheckpointError, match="which is code"):
        lsa_audit(tmp_path / "p.pt", data)
    with pytest.raises(CheckpointError, match="show no layers"):
        lsa_audit(tmp_path / "p.pt", data, trust_code=True, layers="learnable")
    report = lsa_audit(tmp_path / "p.pt", data, trust_code=True)
    assert "default-layers" in [warning.code for warning in report.warnings]
    assert [outcome.layers for outcome in report.outcomes] == [None] * len(report.outcomes)
    assert report.subject.parameters == 16 * 3 + 3


@pytest.fixture
def lsa_audit():
    from lsa_cli import audit

    def run(path, data, **options):
        return audit(path, data=data, eps=0.1, noise="gaussian", attack="fgsm", threads=1, **options)

    return run


@pytest.mark.parametrize(
    ("arch", "settings", "shape"),
    [
        ("torchvision:resnet18", {}, (3, 224, 224)),
        ("torchvision:resnet18", {"input_size": 40}, (3, 40, 40)),
        ("torchvision:resnet18", {"input_size": "native"}, (3, 50, 60)),
        ("lsa:cifar-resnet18", {}, (3, 50, 60)),
    ],
)
def test_images_get_the_size_asked_for_else_torchvisions_own_for_its_networks(tmp_path, arch, settings, shape):
    from lsa_cli.models.architectures import build_architecture

    for name in "ab":
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.fromarray(np.full((50, 60, 3), 90, np.uint8)).save(tmp_path / "images" / name / "1.png")
    torch.save(build_architecture(arch, {"num_classes": 2}).state_dict(), tmp_path / "m.pth")
    given = settings_from({"data": f"imagefolder:{tmp_path}/images", "normalize": "imagenet", **settings})
    network = open_network(tmp_path / "m.pth", given, {})
    assert network.arch == arch  # found by the weights
    assert network.arch_args == {"num_classes": 2}
    assert network.input_shape == shape
    assert any(arch in note for note in network.notes)
