import json
import os
import pickle
import struct
import zipfile

import pytest
import torch
from torch import nn

from lsa_cli.errors import CheckpointError, UsageError
from lsa_cli.models.architectures import mnist_cnn
from lsa_cli.models.checkpoint import Description, load_strictly, read_checkpoint, write_checkpoint
from lsa_cli.models.classifier import Classifier, parse_normalize


@pytest.fixture
def body():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def fresh():
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def saved(tmp_path, content, **options):
    path = tmp_path / "model.pt"
    torch.save(content, path, **options)
    return path


def load(path):
    network, notes = fresh(), []
    checkpoint = read_checkpoint(path)
    load_strictly(network, checkpoint.state_dict, str(path), notes)
    return network, [*checkpoint.notes, *notes]


def same(network, body):
    state = body.state_dict()
    return all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


def test_a_self_describing_file_is_read_back_with_weights_only(tmp_path):
    path = tmp_path / "m.pt"
    description = Description(
        architecture="lsa:mnist-cnn", mean=[0.1], std=[0.3], input_shape=[1, 28, 28], class_names=list("0123456789"),
        data="npz:mnist.npz?split=test", norm="linf", eps=0.3, history=[{"method": "none", "seed": 1}],
    )  # fmt: skip
    network = mnist_cnn()
    write_checkpoint(path, network, description)
    assert isinstance(torch.load(path, weights_only=True), dict)
    checkpoint = read_checkpoint(path)
    assert checkpoint.description == description
    assert all(torch.equal(checkpoint.state_dict[n], t) for n, t in network.state_dict().items())
    assert [p.name for p in tmp_path.iterdir()] == ["m.pt"]


WRAPPINGS = {
    "plain": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3, "best": 0.5},
    "model_state_dict": lambda state: {"model_state_dict": state, "optimizer": {"lr": 0.1}},
    "model": lambda state: {"model": state, "args": {"width": 4}},
    "nested": lambda state: {"net": {"state_dict": state}, "epoch": 1},
    "DataParallel": lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}, "acc": 1},
    "compiled, wrapped": lambda state: {f"module._orig_mod.model.{k}": v for k, v in state.items()},
}


@pytest.mark.parametrize("name", WRAPPINGS)
@pytest.mark.parametrize("zipped", [True, False])
def test_weights_are_found_where_people_put_them(tmp_path, body, name, zipped):
    path = saved(tmp_path, WRAPPINGS[name](body.state_dict()), _use_new_zipfile_serialization=zipped)
    network, notes = load(path)
    assert same(network, body)
    if "." in "".join(WRAPPINGS[name]({"k": 0})):
        assert any("prefix" in note for note in notes)


def test_safetensors_are_read(tmp_path, body):
    from safetensors.torch import save_file

    path = tmp_path / "model.bin"  # told by its bytes, not by its suffix
    save_file({f"model.{name}": tensor for name, tensor in body.state_dict().items()}, path)
    assert same(load(path)[0], body)


def test_half_precision_is_widened_and_said(tmp_path, body):
    state = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in body.state_dict().items()
    }
    network, notes = load(saved(tmp_path, state))
    assert network[0].weight.dtype == torch.float32
    assert "weights stored as float16 were widened to float32" in notes


def test_absent_batchnorm_counters_are_no_obstacle(tmp_path, body):
    state = {name: tensor for name, tensor in body.state_dict().items() if "num_batches" not in name}
    network, notes = load(saved(tmp_path, state))
    assert torch.equal(network[1].running_mean, body[1].running_mean)
    assert any("step counters" in note for note in notes)


def test_what_does_not_fit_is_counted_and_named(tmp_path, body):
    state = body.state_dict()
    state["extra.weight"] = state.pop("0.bias")
    state["3.weight"] = torch.zeros(5, 6)
    with pytest.raises(CheckpointError) as caught:
        load(saved(tmp_path, state))
    message = str(caught.value)
    assert "1 missing (first: 0.bias)" in message
    assert "1 unexpected (first: extra.weight)" in message
    assert "1 of another shape (3.weight is (5, 6), should be (3, 6))" in message


def test_weights_that_diverged_are_refused(tmp_path, body):
    state = body.state_dict()
    state["3.bias"] = torch.tensor([0.0, torch.nan, 1.0])
    with pytest.raises(CheckpointError, match=r"NaN or infinity \(first: 3.bias\)"):
        load(saved(tmp_path, state))


def html(path):
    path.write_text("\n <!DOCTYPE html><html></html>")


def truncated(path):
    torch.save({"weight": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])


def not_a_checkpoint(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "hello")


def bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 50_000_000)


def scripted(path):
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)


BAD = {
    "missing": (lambda path: None, "there is no file"),
    "directory": (lambda path: path.mkdir(), "is a directory"),
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "html": (html, "HTML"),
    "png": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 100), "PNG image"),
    "git lfs": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid x\n"), "git lfs pull"),
    "truncated": (truncated, "damaged zip file"),
    "other zip": (not_a_checkpoint, "no PyTorch checkpoint"),
    "bomb": (bomb, "decompression bomb"),
    "bare pickle": (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "bare pickle"),
    "noise": (lambda path: path.write_bytes(bytes(range(7, 200)) * 9), "no format that lsa reads"),
    "text": (lambda path: torch.save("hello", path), "not a dictionary of weights"),
    "no weights": (lambda path: torch.save({"epoch": 3, "lr": 0.1}, path), "the file holds epoch, lr"),
    "TorchScript": (scripted, "compiled program"),
    "legacy truncated": (
        lambda path: path.write_bytes(bytes.fromhex("80028a0a6cfc9c46f9") + b"\x20j\xa8\x50\x19."),
        "damaged checkpoint",
    ),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_what_is_no_checkpoint_is_named_for_what_it_is(tmp_path, name):
    make, says = BAD[name]
    path = tmp_path / "model.pt"
    make(path)
    with pytest.raises(CheckpointError, match=says) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)


class _Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_never_runs(tmp_path, monkeypatch, zipped):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    marker = tmp_path / "ran"
    path = saved(tmp_path, {"state_dict": _Payload(marker)}, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="could run code"):
        read_checkpoint(path)
    assert not marker.exists()


def test_a_pickled_network_is_refused_by_name(tmp_path, body):
    with pytest.raises(CheckpointError, match=r"torch\.nn\.modules\.container\.Sequential"):
        read_checkpoint(saved(tmp_path, body))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"architecture": "os:system"}, "names Python code"),
        ({"architecture": "evil.py:build"}, "names Python code"),
        ({"eps": "many"}, "eps"),
        ({"surprise": 1}, "surprise"),
        ({"lsa_checkpoint": 2}, "version 2; this lsa reads version 1"),
        ({"std": [1.0]}, "mean without a std"),
    ],
)
def test_a_description_is_not_trusted(tmp_path, change, says):
    described = {"lsa_checkpoint": 1, "architecture": "lsa:moon-mlp", **change, "state_dict": {"w": torch.zeros(1)}}
    with pytest.raises(CheckpointError, match=says):
        read_checkpoint(saved(tmp_path, described))


def test_normalisation_is_part_of_the_classifier(body):
    x = torch.rand(5, 3, 2, 2)
    mean, std = parse_normalize("0.5,0.4,0.3/0.1,0.2,0.4")
    flat = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    expected = flat((x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None])
    torch.testing.assert_close(Classifier(flat, (mean, std))(x), expected)
    assert parse_normalize("none") is None
    assert parse_normalize("mnist") == ((0.1307,), (0.3081,))


@pytest.mark.parametrize("size", [0x3C20, 0x3C20 + 8, 0x2020])
def test_safetensors_are_told_from_a_web_page_by_more_than_a_byte(tmp_path, size):
    """A header of 0x3C20 bytes starts the file with a space and '<'."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", size) + header.ljust(size) + struct.pack("<f", 1.5))
    assert read_checkpoint(path).state_dict["w"].tolist() == [1.5]


def test_a_safetensors_file_describes_itself_in_its_metadata_and_is_trusted_no_more(tmp_path, body):
    from safetensors.torch import save_file

    path = tmp_path / "m.safetensors"
    described = {"lsa_checkpoint": 1, "architecture": "lsa:moon-mlp", "input_shape": [2], "input_range": None}
    save_file(body.state_dict(), path, metadata={"lsa_checkpoint": json.dumps(described)})
    assert read_checkpoint(path).description.architecture == "lsa:moon-mlp"
    described["architecture"] = "evil.py:build"
    save_file(body.state_dict(), path, metadata={"lsa_checkpoint": json.dumps(described)})
    with pytest.raises(CheckpointError, match="names Python code"):
        read_checkpoint(path)


def test_a_checkpoint_that_names_code_as_its_data_is_refused_and_the_code_never_runs(tmp_path):
    from lsa_cli import audit
    from lsa_cli.models.architectures import moon_mlp

    marker = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')\ndef data():\n    return 0\n")
    description = Description(
        architecture="lsa:moon-mlp",
        input_shape=[2],
        input_range=None,
        data=f"{tmp_path}/evil.py:data",
        eps=0.1,
        norm="linf",
    )
    write_checkpoint(tmp_path / "m.pt", moon_mlp(), description)
    with pytest.raises(UsageError, match="names Python code as its data"):
        audit(tmp_path / "m.pt", threads=1)
    assert not marker.exists()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_keep_their_value(tmp_path, body, dtype):
    state = {name: t.to(dtype) if t.is_floating_point() else t for name, t in body.state_dict().items()}
    network, _ = load(saved(tmp_path, state))
    assert torch.equal(network[0].weight, body[0].weight.to(dtype).float())
    assert network(torch.rand(2, 4)).dtype == torch.float32


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, body, monkeypatch):
    path = tmp_path / "m.pt"
    write_checkpoint(path, body, Description(architecture="lsa:moon-mlp"))
    old = path.read_bytes()
    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_checkpoint(path, body, Description(architecture="lsa:moon-mlp"))
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["m.pt"]
