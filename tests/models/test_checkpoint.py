"""What a model file says of itself, which weights in it are meant, and what is no checkpoint."""

import json
import os
import pickle
import struct
import zipfile

import numpy
import pytest
import torch
from torch import nn

from lsa_cli.errors import CheckpointError, UsageError
from lsa_cli.models.architectures import mnist_cnn
from lsa_cli.models.checkpoint import Description, read_checkpoint, write_checkpoint


@pytest.fixture
def body():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def saved(tmp_path, content, **options):
    path = tmp_path / "model.pt"
    torch.save(content, path, **options)
    return path


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
    read = {name: checkpoint.load(spec) for name, spec in checkpoint.weights.tensors.items()}
    assert all(torch.equal(read.pop(name), tensor) for name, tensor in network.state_dict().items())
    assert read == {}
    assert [p.name for p in tmp_path.iterdir()] == ["m.pt"]


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


def frozen(path):
    torch.jit.save(torch.jit.freeze(torch.jit.script(nn.Linear(2, 2).eval())), path)


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
    "frozen": (frozen, "frozen program: its weights are constants"),
    "other object": (lambda path: torch.save(pytest.approx(1.0), path), "no network|not a dictionary of weights"),
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
    with pytest.raises(CheckpointError, match=r"no weights found under .* the file holds state_dict"):
        read_checkpoint(path)
    assert not marker.exists()


def test_names_that_unpickling_would_import_are_listed(tmp_path, body):
    path = saved(tmp_path, {"state_dict": body.state_dict(), "hook": _Payload("x")})
    assert "posix.system" in read_checkpoint(path).globals or "nt.system" in read_checkpoint(path).globals


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


@pytest.mark.parametrize("size", [0x3C20, 0x3C20 + 8, 0x2020])
def test_safetensors_are_told_from_a_web_page_by_more_than_a_byte(tmp_path, size):
    """A header of 0x3C20 bytes starts the file with a space and '<'."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", size) + header.ljust(size) + struct.pack("<f", 1.5))
    checkpoint = read_checkpoint(path)
    assert checkpoint.load(checkpoint.weights.tensors["w"]).tolist() == [1.5]


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


def test_a_configuration_of_timm_with_a_mean_and_no_std_is_refused(tmp_path, body):
    from safetensors.torch import save_file

    save_file(body.state_dict(), tmp_path / "model.safetensors")
    config = {"architecture": "resnet18", "pretrained_cfg": {"mean": [0.5]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        CheckpointError, match=r"config\.json: its description of the network is not valid: .*mean without a std"
    ):
        read_checkpoint(tmp_path)


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, body, monkeypatch):
    path = tmp_path / "m.pt"
    write_checkpoint(path, body, Description(architecture="lsa:moon-mlp"))
    old = path.read_bytes()
    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_checkpoint(path, body, Description(architecture="lsa:moon-mlp"))
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["m.pt"]


# ---- which weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "chosen"),
    [
        (["model", "state_dict"], "state_dict"),
        (["discriminator", "net"], "net"),
        (["ema", "semantic_model"], "semantic_model"),
        (["best_swa", "last"], "last"),
        (["optimizer", "weights"], "weights"),
        (["lr_scheduler", "callbacks", "generator"], "generator"),
        (["a", "b"], None),
        (["student", "teacher"], None),
    ],
)
def test_of_several_sets_the_usual_one_is_chosen_and_none_is_guessed(tmp_path, body, keys, chosen):
    path = saved(tmp_path, {key: body.state_dict() for key in keys})
    if chosen is None:
        with pytest.raises(UsageError, match=f"choose one with --weights: {', '.join(keys)}"):
            read_checkpoint(path)
    else:
        assert read_checkpoint(path).weights.place == chosen


def test_a_set_deep_in_the_file_is_named_by_its_place_or_the_end_of_it(tmp_path, body):
    path = saved(tmp_path, {"a": {"g": body.state_dict()}, "b": [{"d": body.state_dict()}]})
    for wanted in ("b.0.d", "d"):
        assert read_checkpoint(path, wanted).weights.keys == ("b", "0", "d")
    with pytest.raises(UsageError, match=r"unknown set of weights in .*: there are a.g, b.0.d"):
        read_checkpoint(path, "e")


def test_an_optimizer_alone_is_no_weights(tmp_path, body):
    optimizer = torch.optim.Adam(body.parameters())
    body(torch.rand(3, 4)).sum().backward()
    optimizer.step()
    with pytest.raises(CheckpointError, match="no weights found"):
        read_checkpoint(saved(tmp_path, {"optimizer": optimizer.state_dict(), "epoch": 1}))


# ---- claimed accuracy ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("noted", "claim"),
    [
        ({"best_acc": 0.93}, (0.93, "best_acc")),
        ({"best_acc": 93.0}, (0.93, "best_acc")),
        ({"best_prec1": torch.tensor(91.78)}, (0.9178, "best_prec1")),
        ({"acc": torch.tensor([0.5], dtype=torch.float64)}, (0.5, "acc")),
        ({"acc": numpy.float64(93.5)}, (0.935, "acc")),
        ({"acc": numpy.float32(0.25)}, (0.25, "acc")),
        ({"test_acc": 0.8, "acc": 0.9}, (0.8, "test_acc")),
        (
            {"callbacks": {"ModelCheckpoint": {"monitor": "val/acc", "current_score": torch.tensor(0.75)}}},
            (0.75, "val/acc"),
        ),
        ({"metrics": {"val_acc": 0.93}}, (0.93, "metrics.val_acc")),
        ({"metrics": {"acc1": torch.tensor(91.5), "loss": 0.3}}, (0.915, "metrics.acc1")),
        ({"acc": 0.5, "metrics": {"test_acc": 0.9}}, (0.5, "acc")),
        ({"test_error": 7.2}, (0.928, "test_error")),
        ({"best_err1": numpy.float64(0.25)}, (0.75, "best_err1")),
        ({"metrics": {"val_err": torch.tensor(12.5)}}, (0.875, "metrics.val_err")),
        ({"test_error": 7.2, "metrics": {"val_acc": 0.9}}, (0.9, "metrics.val_acc")),
        ({"test_error": 0.08}, (0.92, "test_error")),
        ({"test_error": 0.9}, None),  # 90%, or 0.9%
        ({"test_error": 0.0}, None),
        ({"test_error": 100.0}, None),
        ({"best_err": 1}, None),
        ({"error": "out of memory"}, None),
        ({"metrics": {"train_acc": 0.99, "val_loss": 0.3}}, None),
        ({"metrics": [0.93]}, None),
        ({"metrics": "val_acc"}, None),
        ({"callbacks": {"ModelCheckpoint": {"monitor": "val_loss", "current_score": torch.tensor(0.75)}}}, None),
        ({"best_acc": 0}, None),
        ({"acc": 1}, None),
        ({"acc": True}, None),
        ({"acc": float("nan")}, None),
        ({"acc": 1234.5}, None),
        ({"acc": "high"}, None),
        ({"acc": [1.0, 2.0]}, None),
        ({"acc": numpy.int64(3)}, None),
        ({"acc": torch.tensor([0.1, 0.2, 0.3])}, None),
    ],
    ids=repr,
)
@pytest.mark.parametrize("zipped", [True, False])
def test_the_accuracy_noted_beside_the_weights(tmp_path, body, noted, claim, zipped):
    path = saved(tmp_path, {"state_dict": body.state_dict(), **noted}, _use_new_zipfile_serialization=zipped)
    found = read_checkpoint(path).claimed_accuracy
    assert found == (None if claim is None else (pytest.approx(claim[0]), claim[1]))


def test_the_digest_is_that_of_the_file(tmp_path, body):
    import hashlib

    path = saved(tmp_path, body.state_dict())
    assert read_checkpoint(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_checkpoint(path).size == path.stat().st_size
