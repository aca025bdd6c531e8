"""Which format a file is told to be, by its bytes; and that what is read is what torch and safetensors read."""

import gzip
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections import OrderedDict
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lsa_cli.errors import CheckpointError
from lsa_cli.models.formats import open_contents, sniff
from lsa_cli.models.pickles.modules import tensors_of
from lsa_cli.models.pickles.symbols import ITEM_SIZES, TensorSpec

ROOT = Path(__file__).parent.parent.parent


def equal(found, expected):
    """Same type, shape and bits."""
    return (
        found.dtype == expected.dtype
        and found.shape == expected.shape
        and torch.equal(
            found.contiguous().reshape(-1).view(torch.uint8),
            expected.detach().contiguous().reshape(-1).view(torch.uint8),
        )
    )


def filled(contents, value):
    """The symbols with their tensors read."""
    if isinstance(value, TensorSpec):
        return contents.load(value)
    if isinstance(value, dict):
        return {key: filled(contents, item) for key, item in value.items()}
    return [filled(contents, item) for item in value] if isinstance(value, (list, tuple)) else value


def same(found, expected):
    if isinstance(expected, torch.Tensor):
        return equal(found, expected)
    if isinstance(expected, dict):
        return list(found) == list(expected) and all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, (list, tuple)):
        return len(found) == len(expected) and all(map(same, found, expected))
    return found == expected


def read(path):
    contents = open_contents(path)
    return filled(contents, contents.root)


# ---- what a file is told to be --------------------------------------------------------------------------


def as_npz(path):
    np.savez(path.open("wb"), a=np.ones(3), b=np.ones(2))


def as_tar(path):
    with tarfile.open(path, "w") as archive:
        archive.add(__file__, "a.py")


def as_zip(**entries):
    def make(path):
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in entries.items():
                archive.writestr(name.replace("__", "."), content)

    return make


def as_package(path):
    with torch.package.PackageExporter(path) as exporter:
        exporter.save_source_string("net", "x = 1")


def as_folder(*names):
    def make(path):
        path.mkdir()
        for name in names:
            (path / name).write_bytes(b"x")

    return make


def as_bytes(data):
    return lambda path: path.write_bytes(data)


def image(kind):
    from PIL import Image

    return lambda path: Image.new("RGB", (8, 8)).save(path, kind)


FOREIGN = {  # what it is, and the way out
    "PNG": (image("PNG"), "a PNG image", "give the model file"),
    "JPEG": (image("JPEG"), "a JPEG image", "give the model file"),
    "GIF": (image("GIF"), "a GIF image", "give the model file"),
    "PDF": (as_bytes(b"%PDF-1.7\n" + b"x" * 100), "a PDF document", "give the model file"),
    "LFS": (
        as_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"), "Git LFS pointer", "git lfs pull",
    ),
    "HDF5": (as_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100)), "HDF5", "convert the weights to a state_dict"),
    "GGUF": (as_bytes(b"GGUF\3\0\0\0" + bytes(100)), "GGUF", "state_dict"),
    "ONNX": (as_bytes(b"\x08\x07\x12\x07pytorch\x1a\x032.1" + bytes(100)), "ONNX", ""),
    "TensorFlow graph": (as_bytes(b"\x0a\x0f\x12\x05Const" + bytes(100)), "TensorFlow graph", "PyTorch checkpoints"),
    "TensorFlow Lite": (as_bytes(b"\x1c\0\0\0TFL3" + bytes(100)), "TensorFlow Lite", "PyTorch checkpoints"),
    "HTML": (as_bytes(b"\n<!DOCTYPE html><html></html>"), "HTML", "download link gave a web page"),
    "HTML with a mark": (as_bytes("\ufeff<html></html>".encode()), "HTML", "download link gave a web page"),
    "JSON": (as_bytes(b'{"architectures": ["x"]}'), "a JSON file", "folder with config.json and weights"),
    "JSON list": (as_bytes(b"[1, 2, 3, 4, 5, 6, 7]"), "no format that lsa reads", "state_dict"),
    "damaged JSON": (as_bytes(b'{"weight_map": '), "damaged", "copy or download it again"),
    "npy": (lambda path: np.save(path.open("wb"), np.ones(3)), "a numpy array", "--data"),
    "npz": (as_npz, "an .npz of numpy arrays", "--data npz:FILE"),
    "gzip": (as_bytes(gzip.compress(b"x" * 100)), "a gzip archive", "unpack it"),
    "bzip2": (as_bytes(b"BZh91AY&SY" + bytes(100)), "a bzip2 archive", "unpack it"),
    "xz": (as_bytes(b"\xfd7zXZ\0" + bytes(100)), "an xz archive", "unpack it"),
    "zstandard": (as_bytes(b"\x28\xb5\x2f\xfd" + bytes(100)), "a zstandard archive", "unpack it"),
    "tar": (as_tar, "a tar archive", "unpack it"),
    "Keras": (
        as_zip(model__weights__h5=b"x", config__json=b"{}", metadata__json=b"{}"), "a Keras model", "PyTorch checkpoints",
    ),
    "torch.package": (as_package, "a torch.package", "model.state_dict"),
    "other zip": (as_zip(a__txt=b"x"), "a zip file, but no PyTorch checkpoint", "no data.pkl"),
    "SavedModel": (as_folder("saved_model.pb"), "a TensorFlow SavedModel", "PyTorch checkpoints"),
    "distributed checkpoint": (as_folder(".metadata", "__0_0.distcp"), "a distributed checkpoint", "dcp_to_torch"),
    "other folder": (as_folder("a.txt"), "a directory without model.safetensors", "give the checkpoint file"),
    "empty": (as_bytes(b""), "is empty", "did not finish"),
    "text": (as_bytes(b"epoch 1, loss 0.5\n" * 10), "no format that lsa reads", "state_dict"),
    "text with a brace": (as_bytes(b"def f():{\n" * 10), "no format that lsa reads", "state_dict"),
    "script": (as_bytes(b"#!/bin/sh\necho\n"), "a script", "model file that it writes"),
    "program": (as_bytes(b"\x7fELF" + bytes(100)), "a compiled program", "checkpoint"),
    "one byte": (as_bytes(b"x"), "no format that lsa reads", "state_dict"),
    "nothing": (lambda path: None, "there is no file", "check the path"),
}  # fmt: skip


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".onnx", ""])
@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_no_checkpoint_is_named_with_its_way_out_whatever_its_suffix(tmp_path, kind, suffix):
    make, what, way_out = FOREIGN[kind]
    path = tmp_path / f"model{suffix}"
    make(path)
    with pytest.raises(CheckpointError) as caught:
        open_contents(path)
    for words in (str(path), what, way_out):
        assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)).eval()


def scripted(path):
    torch.jit.save(torch.jit.trace(network(), torch.rand(1, 1, 8, 8)), path)


def exported(path):
    buffer = BytesIO()
    torch.export.save(torch.export.export(network(), (torch.rand(2, 1, 8, 8),)), buffer)
    path.write_bytes(buffer.getvalue())


def sharded(path):
    """The weights in two files, as Hugging Face writes them."""
    path.mkdir(exist_ok=True)
    state = network().state_dict()
    places = {key: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, key in enumerate(state)}
    for file in set(places.values()):
        part = {key: tensor for key, tensor in state.items() if places[key] == file}
        safetensors.torch.save_file(part, path / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def sharded_pickles(path):
    path.mkdir()
    state = network().state_dict()
    places = {key: f"pytorch_model-{number % 2}.bin" for number, key in enumerate(state)}
    for number, file in enumerate(sorted(set(places.values()))):
        part = {key: tensor for key, tensor in state.items() if places[key] == file}
        torch.save(part, path / file, _use_new_zipfile_serialization=number == 0)
    (path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))


def hugging_face(path):
    path.mkdir()
    safetensors.torch.save_file(network().state_dict(), path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({"architecture": "resnet18", "num_classes": 3}))


KINDS = {
    "torch-zip": lambda path: torch.save(network().state_dict(), path),
    "torch-legacy": lambda path: torch.save(network().state_dict(), path, _use_new_zipfile_serialization=False),
    "torchscript": scripted,
    "torch-export": exported,
    "safetensors": lambda path: safetensors.torch.save_file(network().state_dict(), path),
    "folder": hugging_face,
    "folder, sharded": sharded,
    "folder, sharded pickles": sharded_pickles,
}


@pytest.mark.parametrize("suffix", [".pt", ".txt"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_every_format_is_told_by_its_bytes_and_gives_the_same_weights(tmp_path, kind, suffix):
    path = tmp_path / f"model{suffix}"
    KINDS[kind](path)
    assert sniff(path) == kind.partition(",")[0]
    contents = open_contents(path)
    assert contents.format == kind.partition(",")[0]
    specs = tensors_of(contents.root) if kind == "torchscript" else contents.root
    expected = network().state_dict()
    assert set(specs) == set(expected)
    assert all(equal(contents.load(specs[name]), tensor) for name, tensor in expected.items())
    assert all(file.is_file() for file in contents.files)
    assert len(contents.files) == (3 if "sharded" in kind else 1)


def test_an_index_may_be_given_by_itself(tmp_path):
    sharded(tmp_path)
    path = tmp_path / "model.safetensors.index.json"
    assert sniff(path) == "weights-index"
    assert same({**read(path)}, {key: network().state_dict()[key] for key in read(path)})


def test_what_stands_beside_the_weights_is_kept(tmp_path):
    hugging_face(tmp_path / "f")
    assert open_contents(tmp_path / "f").metadata == {"config.json": {"architecture": "resnet18", "num_classes": 3}}
    safetensors.torch.save_file({"w": torch.ones(1)}, tmp_path / "m", metadata={"format": "pt", "x": "y"})
    assert open_contents(tmp_path / "m").metadata == {"format": "pt", "x": "y"}


def test_safetensors_that_start_like_something_else_are_safetensors(tmp_path):
    """The first bytes are a length, so they can look like a pickle, a web page or text."""
    for length in (0x3C20, 0x80, 0x7B, 0x4B50, 0x0A08, 0x8950, 0x200A):
        header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode().ljust(length)
        (tmp_path / "m").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
        assert read(tmp_path / "m")["w"].tolist() == [0]


# ---- what is read is what torch reads -------------------------------------------------------------------

DTYPES = sorted(ITEM_SIZES)


def numbers(dtype, count=12):
    """Bits of every kind, as the type; no values that a type does not have."""
    torch.manual_seed(1)
    if dtype == torch.bool:
        return torch.rand(count) > 0.5
    size = torch.empty(0, dtype=dtype).element_size()
    return torch.randint(0, 256, (count * size,), dtype=torch.uint8).view(dtype)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", DTYPES)
def test_every_type_of_number_is_read_bit_by_bit(tmp_path, name, zipped):
    tensor = numbers(getattr(torch, name))
    assert tensor.element_size() == ITEM_SIZES[name]
    path = tmp_path / "m"
    try:
        torch.save({"w": tensor}, path, _use_new_zipfile_serialization=zipped)
        assert equal(torch.load(path, weights_only=True)["w"], tensor)
    except AttributeError:
        pytest.skip(f"the old format stores no {name}")
    assert equal(read(path)["w"], tensor)


@pytest.mark.parametrize("name", DTYPES)
def test_every_type_of_number_that_safetensors_stores_is_read_bit_by_bit(tmp_path, name):
    path = tmp_path / "m"
    tensor = numbers(getattr(torch, name))
    try:
        safetensors.torch.save_file({"w": tensor}, path)
    except (KeyError, ValueError, safetensors.SafetensorError):
        pytest.skip(f"safetensors stores no {name}")
    assert equal(read(path)["w"], tensor)


def views():
    base = torch.arange(60.0).reshape(3, 4, 5)
    part = base[1:, 1:3]
    return OrderedDict(
        whole=base, turned=base.permute(2, 0, 1), every_other=base[:, ::2, ::3], part=part, again=part, row=base[2, 3],
        number=base[1, 2, 3], scalar=torch.tensor(3.5), repeated=torch.tensor([1.0, 2.0]).expand(4, 2),
        empty=torch.empty(0), empty_shape=torch.empty(3, 0, 2), one=torch.ones(1, 1, 1, 1),
        overlapping=torch.arange(6.0).as_strided((3, 2), (1, 2)), parameter=nn.Parameter(torch.ones(2)),
        buffer=nn.Parameter(torch.arange(3), requires_grad=False), channels=torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last),
    )  # fmt: skip


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_views_shared_numbers_and_odd_shapes_are_read_as_torch_reads_them(tmp_path, zipped, protocol):
    path = tmp_path / "m"
    torch.save(views(), path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    expected = torch.load(path, weights_only=protocol == 2)  # which knows no other
    found = read(path)
    assert same(found, expected)
    assert all(found[name].stride() == tensor.stride() for name, tensor in expected.items() if tensor.numel())


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_what_stands_around_the_tensors_is_read_as_torch_reads_it(tmp_path, zipped, protocol):
    value = {
        "epoch": 3, "lr": 0.1, "name": "é\n\u2028", "none": None, "flags": [True, False], "big": 10**30,
        "nested": {"a": {"b": [{"c": torch.ones(2)}]}}, "tuple": (1, (2.5, "x"), torch.zeros(1)), 7: "seven",
        "ordered": OrderedDict(x=torch.ones(1), y=2), "size": torch.Size([1, 2]), "k" * 5000: torch.ones(3),
        "optimizer": torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1).state_dict(),
    }  # fmt: skip
    path = tmp_path / "m"
    torch.save(value, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    assert same(read(path), torch.load(path, weights_only=protocol == 2))  # which knows no other


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("device", ["cuda:0", "mps", "xla:1"])
def test_what_was_saved_on_another_device_is_read_here(tmp_path, device, zipped, monkeypatch):
    """torch.save writes the place of a storage as text; here it writes another one."""
    path = tmp_path / "m"
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: device)
    torch.save({"w": torch.arange(5.0)}, path, _use_new_zipfile_serialization=zipped)
    monkeypatch.undo()
    assert device.encode() in path.read_bytes()
    tensor = read(path)["w"]
    assert tensor.tolist() == [0, 1, 2, 3, 4]
    assert tensor.device.type == "cpu"


def test_files_without_checksums_are_read(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.arange(5.0)}, tmp_path / "m")
    finally:
        torch.serialization.set_crc32_options(before)
    assert read(tmp_path / "m")["w"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("zipped", [True, False])
def test_a_changed_bit_in_the_numbers_is_found_where_the_format_has_a_checksum(tmp_path, zipped):
    path = tmp_path / "m"
    torch.save({"w": torch.arange(500.0)}, path, _use_new_zipfile_serialization=zipped)
    data = bytearray(path.read_bytes())
    data[data.index(torch.arange(500.0).numpy().tobytes()) + 100] ^= 1
    path.write_bytes(data)
    if zipped:
        with pytest.raises(CheckpointError, match=r"the checksum of 'data/0' is wrong; copy or download it again"):
            read(path)
    else:
        assert read(path)["w"].shape == (500,)


@pytest.mark.parametrize("kind", ["torch-zip", "torch-legacy", "safetensors", "torch-export"])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_what_is_read_belongs_to_the_reader(tmp_path, kind):
    path = tmp_path / "m"
    KINDS[kind](path)
    contents = open_contents(path)
    before = path.read_bytes()
    first, second = contents.load(contents.root["0.weight"]), contents.load(contents.root["0.weight"])
    first.fill_(7)
    assert equal(second, network().state_dict()["0.weight"])
    assert path.read_bytes() == before


def test_a_file_that_goes_away_or_shrinks_between_looking_and_loading_is_said(tmp_path):
    for kind in ("torch-zip", "torch-legacy", "safetensors"):
        path = tmp_path / kind
        KINDS[kind](path)
        contents = open_contents(path)
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 3])
        with pytest.raises(CheckpointError):
            [contents.load(spec) for spec in contents.root.values()]
        path.unlink()
        with pytest.raises(CheckpointError, match="cannot be read"):
            contents.load(contents.root["0.weight"])


def test_a_network_pickled_whole_is_looked_at_and_its_weights_are_read(tmp_path):
    for zipped in (True, False):
        torch.save(network(), tmp_path / "m", _use_new_zipfile_serialization=zipped)
        contents = open_contents(tmp_path / "m")
        found = {name: contents.load(spec) for name, spec in tensors_of(contents.root).items()}
        assert same(found, dict(network().state_dict()))
        assert "torch.nn.modules.container.Sequential" in contents.globals


def test_a_bare_pickle_is_looked_at_and_never_read(tmp_path):
    (tmp_path / "m").write_bytes(pickle.dumps({"w": torch.ones(3), "epoch": 3}))
    contents = open_contents(tmp_path / "m")
    assert contents.format == "pickle"
    assert contents.root["epoch"] == 3
    assert "torch.storage._load_from_bytes" in contents.globals


def test_a_large_old_pickle_is_found_past_the_first_window(tmp_path):
    """The pickles of an old file have no length: they are read in growing windows."""
    value = {"text": "x" * 3_000_000, "w": torch.arange(5.0)}
    torch.save(value, tmp_path / "m", _use_new_zipfile_serialization=False)
    assert same(read(tmp_path / "m"), value)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_published_checkpoints_are_read_as_torch_reads_them(data_root):
    compared = 0
    for path in sorted((data_root / "checkpoints").rglob("*")):
        if not path.is_file() or path.suffix == ".pt2":
            continue
        contents = open_contents(path)
        if contents.format == "torchscript":
            found, expected = tensors_of(contents.root), torch.jit.load(path, map_location="cpu").state_dict()
            found = {name: contents.load(found[name]) for name in expected}
        elif contents.format == "safetensors":
            found, expected = read(path), safetensors.torch.load_file(path)
        else:
            try:
                found, expected = read(path), torch.load(path, weights_only=True, map_location="cpu")
            except (pickle.UnpicklingError, TypeError, AttributeError):
                continue  # a network pickled whole
        if contents.format == "safetensors":
            found = {name: found[name] for name in expected}
        assert same(found, expected), path
        compared += 1
    assert compared >= 10


# ---- memory ---------------------------------------------------------------------------------------------


def run(code, *arguments):
    """Run in a process of its own; what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()


MEASURE = """
import sys
from pathlib import Path
from lsa_cli.models.formats import open_contents
{prepare}
def status(name, file="status"):
    lines = Path(f"/proc/self/{{file}}").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))
peak, taken = status("VmHWM"), status("rchar", "io")
contents = open_contents(Path(sys.argv[1]))
{act}
print(status("VmHWM") - peak, status("rchar", "io") - taken)
"""


def sparse(path, kind):
    """A checkpoint of 10 GB, nearly all of it a hole."""
    count = 10 * 2**30 // 4
    if kind == "safetensors":
        header = json.dumps({"w": {"dtype": "F32", "shape": [count], "data_offsets": [0, 4 * count]}}).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header)
        os.truncate(path, 8 + len(header) + 4 * count)
        return
    with FakeTensorMode():
        content = {"w": torch.empty(count)}
    if kind == "torch-zip":
        with torch.serialization.skip_data(materialize_fake_tensors=True):
            torch.save(content, path)
        return
    torch.save({"w": torch.zeros(8)}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    data = data.replace(b"K\x08", b"\x8a\x05" + count.to_bytes(5, "little"))
    path.write_bytes(data[:-40] + count.to_bytes(8, "little"))
    os.truncate(path, len(data) - 32 + 4 * count)


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts bytes as Linux does")
@pytest.mark.parametrize("kind", ["safetensors", "torch-zip", "torch-legacy"])
def test_only_headers_are_read_to_look_at_a_file_of_10_gigabytes(tmp_path, kind):
    path = tmp_path / "m"
    sparse(path, kind)
    if shutil.disk_usage(tmp_path).total and path.stat().st_blocks * 512 > 2**30:
        pytest.skip("this file system has no holes")
    assert path.stat().st_size > 10 * 2**30
    assert open_contents(path).root["w"].nbytes == 10 * 2**30
    grown, taken = map(int, run(MEASURE.format(prepare="", act=""), path))
    assert grown < 30_000  # kB
    assert taken < 20_000_000  # bytes, of which most are modules of Python


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts bytes as Linux does")
@pytest.mark.parametrize("kind", ["safetensors", "torch-zip", "torch-legacy", "torch-export"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_loading_takes_the_memory_of_the_tensors_and_no_more(tmp_path, kind):
    path = tmp_path / "m"
    state = {f"w{number}": torch.rand(5_000_000) for number in range(10)}
    state["part"] = state["w0"][:1000]
    if kind == "safetensors":
        safetensors.torch.save_file({name: tensor.clone() for name, tensor in state.items()}, path)
    elif kind == "torch-export":
        body = nn.Sequential(*[nn.Linear(2236, 2236, bias=False) for _ in range(10)])
        exported_body = torch.export.export(body, (torch.rand(1, 2236),))
        buffer = BytesIO()
        torch.export.save(exported_body, buffer)
        path.write_bytes(buffer.getvalue())
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "torch-zip")
    size = path.stat().st_size // 1024
    act = "kept = [contents.load(spec) for spec in contents.root.values()]"
    grown, taken = map(int, run(MEASURE.format(prepare="import torch; torch.ones(3).sum()", act=act), path))
    assert size > 190_000
    assert size * 0.9 < grown < size * 1.1
    # Once more to compare it with what torch maps, or, of an old file, with what torch reads.
    assert taken < (3.2 if kind == "torch-legacy" else 2.2) * 1024 * size
