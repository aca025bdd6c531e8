"""`lsa inspect`: what it says is true, nothing of a file is run, and only headers are read."""

import hashlib
import io
import json
import os
import pickle
import shlex
import struct
import subprocess
import sys
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import resnet18

from lsa_cli.cli import facts as gathering
from lsa_cli.models.architectures import runs_user_code
from lsa_cli.models.pickles.symbols import Call, Global
from lsa_cli.models.recognition import shared_prefixes
from lsa_cli.models.rehydration import rebuild
from lsa_cli.registry import SHIPPED
from tests.cli.conftest import ROOT

LARGE = 10 * 10**9
USUAL = {"collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch.FloatStorage", "torch.LongStorage"}

NO_PARTS = {"_parameters": {}, "_buffers": {}, "_modules": {}}


class Hostile:
    """Unpickling it writes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


class OwnNetwork(nn.Module):
    """A class that only the file's own code knows."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)


@pytest.fixture(scope="session")
def network():
    return resnet18(num_classes=7).eval()


@pytest.fixture
def facts(lsa):
    """The object that --json prints."""

    def read(*arguments):
        result = lsa("inspect", *arguments, "--json")
        assert result.code == 0, (result.out, result.err)
        assert result.err == ""
        return json.loads(result.out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))

    return read


@pytest.fixture
def process():
    """Run the command as a process of its own; what it printed, its peak memory in bytes, and what it imported."""

    def run(*arguments):
        program = (
            "import json, pathlib, sys; from lsa_cli.__main__ import app\n"
            f"try: app({[str(a) for a in arguments]!r})\n"
            "except SystemExit as end: code = end.code or 0\n"
            # Not getrusage: its peak starts at the size of the process that this one was forked from.
            "status = pathlib.Path('/proc/self/status')\n"
            "lines = status.read_text().splitlines() if status.exists() else ()\n"
            "peak = sum(1024 * int(line.split()[1]) for line in lines if line.startswith('VmHWM:'))\n"
            "print(json.dumps([code, peak, sorted(sys.modules)]), file=sys.stderr)"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=120,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        code, peak, modules = json.loads(done.stderr.splitlines()[-1])
        assert code == 0, done.stderr
        return done.stdout, peak, set(modules)

    return run


def save(path, content, **options):
    torch.save(content, path, **options)
    return path


def test_a_state_dict_is_counted_as_torch_counts_it(facts, tmp_path, network):
    path = save(tmp_path / "m.pth", network.state_dict())
    said = facts(path)
    (weights,) = said["weights"]
    state = network.state_dict()
    assert (said["format"], said["holds"]) == ("torch-zip", "weights")
    assert weights["parameters"] == sum(p.numel() for p in network.parameters())
    assert weights["dtypes"] == {"float32": 102, "int64": 20}
    assert [(t["name"], tuple(t["shape"]), f"torch.{t['dtype']}") for t in weights["tensors"]] == [
        (name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in state.items()
    ]
    assert weights["architectures"] == [{"arch": "torchvision:resnet18", "arguments": {"num_classes": 7}, "classes": 7}]
    assert said["size"] == path.stat().st_size
    assert said["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert set(said["globals"]) == USUAL
    assert said["command"] == f"lsa audit {path} --data SOURCE:PATH"


FORMATS = {
    "torch-zip": lambda path, m: torch.save(m.state_dict(), path),
    "torch-legacy": lambda path, m: torch.save(m.state_dict(), path, _use_new_zipfile_serialization=False),
    "safetensors": lambda path, m: save_file(m.state_dict(), path),
    "torchscript": lambda path, m: torch.jit.trace(m, torch.zeros(1, 3, 32, 32)).save(path),
    "torch-export": lambda path, m: torch.export.save(torch.export.export(m, (torch.zeros(1, 3, 32, 32),)), path),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_holds_the_same_tensors(facts, tmp_path, network, name):
    path = tmp_path / "m.pt2"
    FORMATS[name](path, network)
    said = facts(path)
    is_program = name in ("torchscript", "torch-export")
    assert (said["format"], said["holds"]) == (name, "program" if is_program else "weights")
    (weights,) = said["weights"]
    found = {t["name"]: tuple(t["shape"]) for t in weights["tensors"]}
    assert found == {key: tuple(t.shape) for key, t in network.state_dict().items()}
    assert weights["parameters"] == sum(p.numel() for p in network.parameters())
    assert [match["arch"] for match in weights["architectures"]] == ["torchvision:resnet18"]
    assert ("--arch torchvision:resnet18" in said["command"]) == is_program


def test_prefixes_that_names_share(facts, tmp_path):
    state = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)).state_dict()
    wrapped = {f"module._orig_mod.{name}": tensor for name, tensor in state.items()}
    assert facts(save(tmp_path / "a.pt", state))["weights"][0]["prefixes"] == []
    assert facts(save(tmp_path / "b.pt", wrapped))["weights"][0]["prefixes"] == ["module.", "_orig_mod."]
    averaged = {**wrapped, "n_averaged": torch.tensor(3)}
    assert facts(save(tmp_path / "c.pt", averaged))["weights"][0]["prefixes"] == ["module.", "_orig_mod."]
    assert shared_prefixes(["a.b.c.d.e.f.weight"]) == ["a.", "b.", "c.", "d."]
    assert shared_prefixes([]) == []


def test_sets_of_weights_and_which_one_is_taken(lsa, facts, tmp_path):
    state = nn.Linear(3, 2).state_dict()
    averaged = save(
        tmp_path / "ema.pt", {"model": state, "model_ema": dict(state), "epoch": 9, "optimizer": {"state": {}}}
    )
    said = facts(averaged)
    assert [(w["place"], w["chosen"], w["averaged"]) for w in said["weights"]] == [
        ("model", True, False), ("model_ema", False, True),
    ]  # fmt: skip
    assert said["entries"] == {"epoch": 9, "optimizer": "<mapping of 1>"}
    assert "model_ema: 2 tensors, 8 parameters, float32; averaged; --weights model_ema" in lsa("inspect", averaged).out
    several = save(tmp_path / "gan.pt", {"first one": state, "second": dict(state)})
    said = facts(several)
    assert [w["chosen"] for w in said["weights"]] == [False, False]
    assert shlex.split(said["command"])[2:5] == [str(several), "--weights", "first one"]
    assert "choose one with --weights: first one, second" in said["advice"][0]


def test_a_network_pickled_whole_names_what_it_would_import_and_imports_nothing(process, facts, tmp_path):
    path = save(tmp_path / "whole.pt", {"model": OwnNetwork(), "extra": Hostile(tmp_path / "marker")})
    said = facts(path)
    assert said["holds"] == "network"
    assert said["weights"][0]["class_name"] == f"{__name__}.OwnNetwork"
    assert {f"{__name__}.OwnNetwork", "posix.system", "torch.nn.modules.linear.Linear"} <= set(said["globals"])
    assert "--arch FILE.py:FACTORY" in said["command"]
    out, _, modules = process("inspect", path)
    assert "posix.system" in out
    assert "nothing was imported or run" in " ".join(out.split())
    assert __name__ not in modules
    assert not (tmp_path / "marker").exists()


def test_a_network_of_installed_classes_needs_no_architecture(facts, tmp_path, network):
    said = facts(save(tmp_path / "whole.pt", network))
    assert (said["holds"], "--arch" in said["command"]) == ("network", False)


@pytest.mark.parametrize(
    "wrap", [lambda path, x: path.write_bytes(pickle.dumps(x)), lambda path, x: torch.save(x, path)]
)
def test_a_hostile_pickle_is_named_and_not_run(lsa, facts, tmp_path, wrap):
    path = tmp_path / "evil.pkl"
    wrap(path, Hostile(tmp_path / "marker"))
    said = facts(path)
    assert (said["globals"], said["holds"], said["weights"], said["command"]) == (["posix.system"], "nothing", [], None)
    assert said["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    result = lsa("inspect", path)
    assert result.code == 0
    assert "trusting it would import: posix.system; nothing was imported or run" in result.out
    assert not (tmp_path / "marker").exists()


def test_the_text_says_what_the_json_says(lsa, facts, tmp_path, network):
    path = save(tmp_path / "m.pt", {"state_dict": network.state_dict(), "best_acc1": 71.25, "arch": "resnet18"})
    said, text = facts(path), lsa("inspect", path, "--all").out
    rows = dict(line.split("  ", 1) for line in text.split("\n\n")[0].splitlines() if line[:1].strip())
    rows = {key.strip(): value.strip() for key, value in rows.items()}
    (weights,) = said["weights"]
    assert rows["sha256"] == said["sha256"]
    assert f"({said['size']:,} bytes)" in rows["size"]
    assert rows["parameters"] == f"{weights['parameters']:,} (by their names)"
    assert weights["architectures"][0]["arch"] in rows["architecture"]
    assert said["claimed_accuracy"] == {"value": 0.7125, "name": "best_acc1"}
    assert "71.2%, noted as best_acc1" in rows["claims"]
    assert rows["beside them"] == "arch resnet18"
    assert said["command"] in text
    lines = text[text.index("Tensors") : text.index("Next command")].splitlines()
    expected = [[t["name"], "x".join(map(str, t["shape"])) or "scalar", t["dtype"]] for t in weights["tensors"]]
    assert [line.split() for line in lines if len(line.split()) == 3][1:] == expected
    short = lsa("inspect", path).out
    assert "... 102 more (--all)" in short
    assert "fc.bias" not in short


def test_what_a_file_says_of_itself(facts, lsa, samples, tmp_path, network):
    said = facts(samples / "mnist_cnn.pt")
    assert said["description"]["architecture"] == "lsa:mnist-cnn"
    assert said["command"] == f"lsa audit {samples / 'mnist_cnn.pt'}"
    assert said["claimed_accuracy"]["value"] == said["description"]["clean_accuracy"]
    folder = tmp_path / "hub"
    folder.mkdir()
    save_file(network.state_dict(), folder / "model.safetensors", metadata={"format": "pt", "note": "mine"})
    (folder / "config.json").write_text('{"architecture": "resnet18", "num_classes": 7, "odd": NaN}')
    said = facts(folder)
    assert said["metadata"] == {"config.json": {"architecture": "resnet18", "num_classes": 7, "odd": "nan"}}
    assert said["description"]["architecture"] == "timm:resnet18"
    assert facts(folder / "model.safetensors")["metadata"] == {"format": "pt", "note": "mine"}
    broken = save(tmp_path / "broken.pt", {"lsa_checkpoint": 1, "architecture": "mine.py:build", "state_dict": {}})
    assert "names Python code" in facts(broken)["advice"][-1]
    assert "names Python code" in lsa("inspect", broken).out


def test_weights_in_several_files(facts, tmp_path):
    for number in (1, 2):
        save_file({f"fc{number}.weight": torch.zeros(2, 3)}, tmp_path / f"part{number}.safetensors")
    names = {f"fc{number}.weight": f"part{number}.safetensors" for number in (1, 2)}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 48}, "weight_map": names}))
    for path, kind in ((index, "weights-index"), (tmp_path, "folder")):
        said = facts(path)
        assert said["format"] == kind
        assert said["weights"][0]["parameters"] == 12
        assert len(said["files"]) == 3
        assert said["size"] == sum(file["size"] for file in said["files"])


def test_hostile_names_steer_neither_the_terminal_nor_the_shell(lsa, facts, tmp_path):
    state = {"[red]\x1b[31ma\r\nb.weight": torch.zeros(2), "x" * 10_000: torch.zeros(2)}
    path = save(
        tmp_path / "m.pt", {"$(reboot)": state, "b": dict(state), "n": float("nan"), "i": 10**5000, "d": {1: {}}}
    )
    out = lsa("inspect", path, "--all").out
    assert "\x1b" not in out
    assert "\r" not in out
    assert "[red]\\x1b[31ma\\r\\nb.weight" in out
    assert "x" * 1000 not in out
    said = facts(path)
    assert shlex.split(said["command"])[4] == "$(reboot)"
    assert "'$(reboot)'" in said["command"]
    assert said["entries"] == {"n": "nan", "i": "<integer of 16610 bits>", "d": "<mapping of 1>"}
    assert said["weights"][0]["tensors"][0]["name"] in state


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\x08\x07\x12\x07pytorch", "ONNX"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "PNG image"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"", "empty"),
        (b"PK\x03\x04 cut short", "damaged zip"),
    ],
)
def test_foreign_and_damaged_files_end_in_one_sentence(refused, tmp_path, content, says):
    path = tmp_path / "file.bin"
    path.write_bytes(content)
    for flags in ([], ["--json"]):
        refused("inspect", path, *flags, says=says)


def test_a_missing_file_ends_in_one_sentence(refused, tmp_path):
    refused("inspect", tmp_path / "none.pt", says="there is no file")


def test_neither_torch_nor_pandas_is_imported(process, samples, tmp_path, network):
    whole = save(tmp_path / "whole.pt", network)
    for arguments in ([samples / "mnist_cnn.pt"], [samples / "custom_cnn.pth", "--json"], [whole]):
        _, _, modules = process("inspect", *arguments)
        assert not modules & {"torch", "torchvision", "timm", "pandas", "numpy"}


def test_what_is_known_without_torch_is_what_torch_knows():
    names = (
        "torch.nn.modules.linear.Linear", "torchvision.models.resnet.ResNet", "torchvision.ops.misc.SqueezeExcitation",
        "torch.optim.sgd.SGD", "torchvision.datasets.mnist.MNIST", "torch.nnx.Linear", "tests.OwnNetwork",
    )  # fmt: skip
    is_rebuilt = {
        name: rebuild(Call(Global(*name.rsplit(".", 1)), (), NO_PARTS), load=None)[0] is not None for name in names
    }
    assert list(is_rebuilt.values()) == [True] * 3 + [False] * 4
    assert is_rebuilt == {name: gathering._is_installed(name) for name in names}
    assert not any(runs_user_code(f"{source}:name") for source in SHIPPED)


def large_safetensors(path):
    """10 GB that are a hole behind the header."""
    header = {"weight": {"dtype": "F32", "shape": [LARGE // 4], "data_offsets": [0, LARGE]}}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + LARGE)


def large_zip(path):
    """A checkpoint of one tensor, whose storage is made 10 GB of nothing: a hole with its own zip entry."""
    saved = io.BytesIO()
    torch.save({"weight": torch.zeros(3)}, saved)
    with zipfile.ZipFile(saved) as archive:
        content = archive.read("archive/data.pkl")
    numbers = LARGE // 4
    as_long = b"\x8a\x08" + struct.pack("<q", numbers)
    content = content.replace(b"K\x03tq", as_long + b"tq", 1).replace(b"K\x03\x85", as_long + b"\x85", 1)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("large/data.pkl", content)
        entry = zipfile.ZipInfo("large/data/0")
        entry.CRC = 0
        entry.file_size = entry.compress_size = LARGE
        entry.header_offset = archive.fp.tell()
        archive.fp.write(entry.FileHeader(zip64=True))
        archive.fp.seek(LARGE, os.SEEK_CUR)
        archive.filelist.append(entry)
        archive.start_dir = archive.fp.tell()


@pytest.mark.skipif(sys.platform != "linux", reason="needs sparse files and Linux's unit of memory")
@pytest.mark.parametrize("write", [large_safetensors, large_zip])
def test_of_ten_gigabytes_only_the_headers_are_read(process, tmp_path, write):
    path = tmp_path / "large.bin"
    write(path)
    assert path.stat().st_size > LARGE
    assert path.stat().st_blocks * 512 < 10**7
    out, peak, _ = process("inspect", path, "--json")
    said = json.loads(out)
    assert said["weights"][0]["parameters"] == LARGE // 4
    assert said["sha256"] is None
    assert peak < 500 * 2**20
    text, peak, _ = process("inspect", path)
    assert "not computed: 10.0 GB; --sha256 computes it" in text
    assert peak < 500 * 2**20


def test_the_hash_is_computed_or_not_as_asked(lsa, facts, tmp_path, monkeypatch):
    path = save(tmp_path / "m.pt", nn.Linear(3, 2).state_dict())
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    assert facts(path)["sha256"] == expected
    assert facts(path, "--no-sha256")["sha256"] is None
    monkeypatch.setattr(gathering, "_LARGEST_HASHED", 100)
    assert facts(path)["sha256"] is None
    assert facts(path, "--sha256")["sha256"] == expected


def test_all_real_files_are_inspected(lsa, facts, data_root):
    files = [path for path in (data_root / "checkpoints").rglob("*") if path.is_file()]
    assert files
    for path in files:
        assert lsa("inspect", path).code == 0
        said = facts(path)
        assert said["weights"], path
        assert said["command"].startswith("lsa audit ")
