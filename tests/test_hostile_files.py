"""Files made to do harm: each ends in one sentence or is read harmlessly, soon, in little memory, and runs nothing.

The payloads would write a marker; that they do, where something unpickles them, is tested too.
"""

import json
import os
import pickle
import resource
import signal
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from lsa_cli.errors import EXIT_USAGE, CheckpointError, LsaError, printable
from lsa_cli.models import rehydration
from lsa_cli.models.checkpoint import read_checkpoint
from lsa_cli.models.loading import load_network

SECONDS = 5  # of computing, of which a busy machine makes more by the clock; what this guards takes minutes or forever
MEGABYTES = 500


# ---- the watch over time and memory ---------------------------------------------------------------------


class Hang(BaseException):
    """No Exception: nothing may catch it."""


def _high_water():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) // 1024
    raise AssertionError("no VmHWM")


@contextmanager
def watched(seconds=SECONDS, megabytes=MEGABYTES):
    def ring(*_):
        raise Hang(f"more than {seconds} s")

    measured = Path("/proc/self/clear_refs").exists()
    if measured:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
        before = _high_water()
    old = [signal.signal(number, ring) for number in (signal.SIGPROF, signal.SIGALRM)]
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, 12 * seconds)  # for what waits and computes nothing
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in zip((signal.SIGPROF, signal.SIGALRM), old, strict=True):
            signal.signal(number, handler)
    if measured:
        assert _high_water() - before < megabytes


def look(path):
    """Do with a file what an audit does: read it, load every tensor, rebuild the network. Returns tensors or a sentence."""
    try:
        with watched():
            checkpoint = read_checkpoint(path)
            tensors = {name: checkpoint.load(spec) for name, spec in checkpoint.weights.tensors.items()}
            if checkpoint.weights.module is not None:
                rehydration.rebuild(checkpoint.weights.module, checkpoint.load)
                load_network(checkpoint, None, {})
        return tensors
    except LsaError as error:
        return sentence_of(error)


def sentence_of(error):
    sentence = str(error)
    assert error.exit_code == EXIT_USAGE
    assert sentence.strip()
    assert "\n" not in sentence
    assert len(sentence) < 2000
    return sentence


# ---- assembling pickles ---------------------------------------------------------------------------------


def text(value):
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def big(value):
    data = pickle.encode_long(value)
    return b"\x8a" + bytes([len(data)]) + data


def integer(value):
    return b"J" + struct.pack("<i", value) if -(2**31) <= value < 2**31 else big(value)


def tuple_of(*parts):
    return b"(" + b"".join(parts) + b"t"


def list_of(*parts):
    return b"](" + b"".join(parts) + b"e"


def dict_of(pairs):
    return b"}(" + b"".join(text(key) + value for key, value in pairs.items()) + b"u"


def name(module, attribute):
    return b"c" + f"{module}\n{attribute}\n".encode()


def late_name(module, attribute):
    return text(module) + text(attribute) + b"\x93"


def call(function, *arguments):
    return function + tuple_of(*arguments) + b"R"


def whole(body, protocol=4):
    return bytes([0x80, protocol]) + body + b"."


class _Reduced:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def body_of(value, protocol):
    """What pickle itself writes for a value, without its start and end."""
    data = pickle.dumps(value, protocol)
    return data[2 if protocol < 4 else 11 : -1]


def storage(key="0", numel=4, kind="FloatStorage", module="torch", first="storage", location="cpu"):
    return tuple_of(text(first), name(module, kind), text(key), text(location), integer(numel)) + b"Q"


def tensor(stored=None, offset=0, shape=(4,), stride=(1,), function="_rebuild_tensor_v2"):
    return call(
        name("torch._utils", function), storage() if stored is None else stored, integer(offset),
        tuple_of(*map(integer, shape)), tuple_of(*map(integer, stride)), b"\x89",
        call(name("collections", "OrderedDict")),
    )  # fmt: skip


def module_state(**attributes):
    """A torch.nn.Linear as it is pickled whole, with attributes of one's own."""
    state = {
        "training": b"\x89", "_parameters": dict_of({"weight": tensor(shape=(2, 2), stride=(2, 1))}), "_buffers": b"}",
        "_non_persistent_buffers_set": call(name("builtins", "set"), b"]"), "_backward_hooks": b"}",
        "_is_full_backward_hook": b"N", "_forward_hooks": b"}", "_forward_pre_hooks": b"}", "_state_dict_hooks": b"}",
        "_load_state_dict_pre_hooks": b"}", "_modules": b"}", "in_features": b"K\x02", "out_features": b"K\x02",
        **attributes,
    }  # fmt: skip
    return name("torch.nn.modules.linear", "Linear") + b")\x81" + dict_of(state) + b"b"


def hook(value):
    return dict_of({"0": value})


def corpus(marker):
    """Bodies of pickles, each of which leaves one value on the stack: (runs, misleads, modules), by name."""
    inner = torch_zip(BytesIO(), whole(call(name("posix", "system"), text(f"touch {marker}")))).getvalue()
    touch = text(f"touch {marker}")
    run = call(name("posix", "system"), touch)
    python = text(f"open({str(marker)!r},'w')")

    # What runs code when pickle.loads reads it. Each body leaves one value on the stack.
    runs = {
        "os.system": call(name("os", "system"), touch),
        "posix.system": run,
        "reduce, protocol 2": body_of(_Reduced(marker), 2),
        "reduce, protocol 4": body_of(_Reduced(marker), 4),
        "inst": b"(" + touch + b"ios\nsystem\n",
        "obj": b"(" + name("os", "system") + touch + b"o",
        "stack global": call(late_name("os", "system"), touch),
        "names out of the memo": text("os") + b"q\x05" + text("system") + b"q\x0600h\x05h\x06\x93" + tuple_of(touch) + b"R",
        "name put together": (
            call(name("operator", "add"), text("o"), text("s")) + call(name("operator", "concat"), text("sys"), text("tem"))
            + b"\x93" + tuple_of(touch) + b"R"
        ),
        "name joined by a method": call(
            call(name("operator", "methodcaller"), text("join"), list_of(text("sys"), text("tem"))), text("")
        ) + b"0" + call(late_name("os", "system"), touch),
        "getattr chain": call(
            call(name("builtins", "getattr"), call(name("builtins", "__import__"), text("os")), text("system")), touch
        ),
        "getattr over dunder": call(
            call(
                name("builtins", "getattr"),
                call(name("builtins", "getattr"), name("torch.serialization", "os"), text("__dict__")), text("get"),
            ),
            text("system"),
        ) + tuple_of(touch) + b"R",
        "eval": call(name("builtins", "eval"), python),
        "eval, Python 2 name": call(name("__builtin__", "eval"), python),
        "exec": call(name("builtins", "exec"), python),
        "import_module": call(
            call(name("operator", "methodcaller"), text("system"), touch),
            call(name("importlib", "import_module"), text("os")),
        ),
        "attrgetter": call(call(name("operator", "attrgetter"), text("os.system")), name("torch", "serialization"))
        + tuple_of(touch) + b"R",
        "dotted name in an innocent module": call(late_name("torch.nn.functional", "torch.serialization.os.system"), touch),
        "partial": call(call(name("functools", "partial"), name("os", "system"), touch)),
        "partial with a state": call(name("functools", "partial"), name("builtins", "len"))
        + tuple_of(name("os", "system"), tuple_of(touch), b"}", b"N") + b"b)R",
        "newobj of map": name("builtins", "map") + tuple_of(name("os", "system"), list_of(touch)) + b"\x81q\x070"
        + call(name("builtins", "list"), b"h\x07"),
        "filter in an OrderedDict": call(
            name("collections", "OrderedDict"),
            call(name("builtins", "filter"), name("os", "system"), list_of(touch)),
        ),
        "defaultdict": call(
            name("operator", "getitem"),
            call(name("collections", "defaultdict"), call(name("functools", "partial"), name("os", "system"), touch)),
            text("x"),
        ),
        "setstate of a built object": call(name("types", "SimpleNamespace")) + dict_of({"a": run}) + b"b",
        "a pickle within": call(name("_pickle", "loads"), b"B" + struct.pack("<I", len(whole(run))) + whole(run)),
        "a torch file within": call(name("torch.storage", "_load_from_bytes"), b"B" + struct.pack("<I", len(inner)) + inner),
        "subprocess": call(name("subprocess", "call"), list_of(text("touch"), text(str(marker)))),
        "Popen": call(
            call(name("operator", "attrgetter"), text("wait")),
            call(name("subprocess", "Popen"), list_of(text("touch"), text(str(marker)))),
        ) + b")R",
        "timeit": call(name("timeit", "timeit"), python, text("pass"), name("time", "time"), b"K\x01"),
        "run_path": call(name("runpy", "run_path"), text(str(marker.parent / "hubconf.py"))),
        "torch.hub.load": call(late_name("torch.hub", "_load_local"), text(str(marker.parent)), text("build")),
        "a file of Python of our own": call(name("lsa_cli.imports", "load_python_file"), text(str(marker.parent / "hubconf.py")), text("x")),
        "rebuild_from_type": call(
            name("torch._tensor", "_rebuild_from_type_v2"), name("os", "system"), name("builtins", "int"),
            tuple_of(touch), b"}",
        ),
        "rebuild_from_type, old": call(
            name("torch._tensor", "_rebuild_from_type"), name("os", "system"), name("builtins", "int"),
            tuple_of(touch), b"}",
        ),
        "hooks of a parameter": call(
            name("torch._utils", "_rebuild_parameter"), call(name("torch", "zeros"), b"K\x01"), b"\x88", dict_of({"0": run})
        ),
        "a call for a storage": call(
            name("builtins", "list"), tuple_of(run, integer(0), tuple_of(integer(1)), tuple_of(integer(1)))
        ),
    }  # fmt: skip

    # What no plain pickle.loads would run, but would mislead a reader that trusts names, shapes or numbers.
    misleads = {
        "a call as storage": tensor(run),
        "a name as storage": tensor(name("os", "system")),
        "a tensor of an empty call": call(name("torch._utils", "_rebuild_tensor_v2")),
        "a parameter of a call": call(name("torch._utils", "_rebuild_parameter"), run, b"\x88", b"}"),
        "a parameter with state": call(
            name("torch._utils", "_rebuild_parameter_with_state"), tensor(), b"\x88", b"}", dict_of({"__class__": run})
        ),
        "extension 1": b"\x82\x01",
        "extension 2": b"\x83\x01\x00",
        "extension 4": b"\x84\x01\x00\x00\x00",
        "persistent text": b"Pposix.system\n",
        "persistent id of a call": run + b"Q",
        "persistent id that is no storage": tuple_of(text("code"), run) + b"Q",
        "persistent module": tuple_of(text("module"), name("os", "system"), text("evil.py"), python) + b"Q",
        "storage of a foreign kind": storage(kind="system", module="os"),
        "storage of a torch function": storage(kind="load", module="torch.hub"),
        "storage under a call": tuple_of(
            text("storage"), name("torch", "FloatStorage"), run, text("cpu"), integer(4)
        ) + b"Q",
        "out-of-band buffer": b"\x97",
        "read-only buffer": b"\x97\x98",
        "compiled extension": call(name("torch.utils.cpp_extension", "load_inline"), text("x"), python),
        "global hook": call(name("torch.nn.modules.module", "register_module_forward_hook"), name("os", "system")),
        "jit.load": call(name("torch.jit", "load"), text("x.pt")),
        "hub.load": call(name("torch.hub", "load"), text("evil/repo"), text("model")),
        "export.load": call(name("torch.export", "load"), text("x.pt2")),
        "numpy.load": call(name("numpy", "load"), text("x.npy"), b"N", b"\x88"),
        "timm load": call(name("timm.models", "load_checkpoint"), b"N", text("x.pt")),
        "allow-list": call(name("torch.serialization", "add_safe_globals"), list_of(name("os", "system"))),
        "bytearray of gigabytes": call(name("builtins", "bytearray"), big(4 * 10**9)),
        "Tensor of gigabytes": call(name("torch", "Tensor"), big(10**9)),
        "newobj_ex": name("subprocess", "Popen") + b")" + dict_of({"args": touch}) + b"\x92",
        "newobj of a subclass": name("collections", "OrderedDict") + b")\x81" + dict_of({"__reduce__": run}) + b"b",
        "key that is a call": b"}(" + run + tensor() + b"u",
        "name with a line feed": late_name("os\nsystem", "x\ny\r\x1b[31m"),
        "name with half a character": late_name("\ud800", "system"),
        "long name": late_name("a" * 100_000, "b" * 100_000),
    }  # fmt: skip

    partial = call(name("functools", "partial"), name("os", "system")) + tuple_of(
        name("os", "system"), tuple_of(touch), b"}", b"N"
    ) + b"b"  # fmt: skip
    # Networks pickled whole, of installed classes, in which something is not what it should be.
    modules = {
        "forward hook": module_state(_forward_hooks=hook(partial)),
        "forward pre-hook": module_state(_forward_pre_hooks=hook(partial)),
        "backward hook": module_state(_backward_hooks=hook(partial)),
        "state_dict hook": module_state(_state_dict_hooks=hook(partial)),
        "load hook": module_state(_load_state_dict_pre_hooks=hook(partial)),
        "hooks that are no mapping": module_state(_forward_hooks=list_of(partial)),
        "no hooks at all": name("torch.nn.modules.linear", "Linear") + b")\x81" + dict_of(
            {"_parameters": b"}", "_buffers": b"}", "_modules": b"}"}
        ) + b"b",
        "forward replaced": module_state(forward=partial),
        "call replaced": module_state(_call_impl=partial, __call__=partial),
        "compiled call": module_state(_compiled_call_impl=partial),
        "class replaced": module_state(__class__=name("os", "system")),
        "dict replaced": module_state(__dict__=run),
        "setstate replaced": module_state(__setstate__=partial),
        "activation is os.system": module_state(activation=name("os", "system")),
        "activation behind torch": module_state(activation=late_name("torch.nn.functional", "torch.serialization.os.system")),
        "activation is a private function": module_state(activation=name("torch.nn.functional", "_list_with_default")),
        "activation loads": module_state(activation=name("torch.hub", "load")),
        "module of a function's name": name("torch.nn.functional", "relu") + b")\x81" + dict_of(
            {"_parameters": b"}", "_buffers": b"}", "_modules": b"}"}
        ) + b"b",
        "distributed": name("torch.nn.parallel.distributed", "DistributedDataParallel") + b")\x81" + dict_of(
            {"_parameters": b"}", "_buffers": b"}", "_modules": dict_of({"module": module_state()}), "process_group": b"N"}
        ) + b"b",
        "parameters that are numbers": module_state(_parameters=dict_of({"weight": b"K\x05"})),
        "buffers that are numbers": module_state(_buffers=dict_of({"weight": b"K\x05"})),
        "buffers that are a list": module_state(_buffers=list_of(b"K\x05")),
        "modules that are numbers": module_state(_modules=dict_of({"a": b"K\x05"})),
        "modules that are functions": module_state(_modules=dict_of({"a": name("torch.nn.functional", "relu")})),
        "modules that are classes": module_state(_modules=dict_of({"a": name("torch.nn.modules.linear", "Linear")})),
        "set of sets": module_state(_non_persistent_buffers_set=call(name("builtins", "set"), list_of(b"]", b"}"))),
        "enum": module_state(kind=call(name("torch.nn.modules.module", "_IncompatibleKeys"), b"N")),
        "constructor arguments": call(name("torch.nn.modules.linear", "Linear"), b"K\x02", b"K\x02"),
        "integer weights": module_state(_parameters=dict_of({"weight": tensor(storage(kind="IntStorage"))})),
        "keys that are numbers": name("torch.nn.modules.linear", "Linear") + b")\x81"
        + b"}(K\x01K\x02" + b"".join(text(k) + b"}" for k in ("_parameters", "_buffers", "_modules")) + b"ub",
        "a module inside itself": name("torch.nn.modules.container", "Sequential") + b")\x81q\x01" + dict_of(
            {"_parameters": b"}", "_buffers": b"}", "_modules": dict_of({"a": b"h\x01"})}
        ) + b"b",
    }  # fmt: skip
    return runs, misleads, modules


# ---- containers -----------------------------------------------------------------------------------------


def zipped(path, entries, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for entry, content in entries.items():
            archive.writestr(entry, content)
    return path


FLOATS = struct.pack("<4f", 1, 2, 3, 4)


def torch_zip(path, pickled, data=FLOATS, **more):
    return zipped(
        path, {"a/data.pkl": pickled, "a/byteorder": b"little", "a/data/0": data, "a/version": b"3\n", **more}
    )


LEGACY = [
    pickle.dumps(0x1950A86A20F9469CFC6C, 2), pickle.dumps(1001, 2),
    pickle.dumps({"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}, 2),
]  # fmt: skip


def legacy(path, pickled, keys=None, data=None, head=LEGACY):
    keys = pickle.dumps(["0"], 2) if keys is None else keys
    pickled = pickled.replace(b"tQ", b"NtQ")  # here a storage says, too, which part of another one it is
    path.write_bytes(b"".join([*head, pickled, keys, struct.pack("<q", 4) + FLOATS if data is None else data]))
    return path


def torchscript(path, pickled, constants=b"\x80\x02).", code=b"def forward(self, x):\n  return x\n"):
    return zipped(
        path,
        {
            "a/data.pkl": pickled, "a/code/__torch__.py": code, "a/code/__torch__.py.debug_pkl": b"\x80\x02).",
            "a/data/0": FLOATS, "a/constants.pkl": constants, "a/version": b"3\n",
        },
    )  # fmt: skip


def export_config(**changes):
    meta = {
        "dtype": 7, "sizes": [{"as_int": 4}], "strides": [{"as_int": 1}], "storage_offset": {"as_int": 0},
        "requires_grad": False, "device": {"type": "cpu", "index": None}, "layout": 7, **changes.pop("meta", {}),
    }  # fmt: skip
    entry = {"path_name": "weight_0", "is_param": True, "use_pickle": False, "tensor_meta": meta, **changes}
    return {"config": {"w": entry}}


def export(path, config=None, weight=FLOATS, sample=b"", **more):
    config = export_config() if config is None else config
    return zipped(
        path,
        {
            "a/archive_format": b"pt2", "a/byteorder": b"little", "a/models/model.json": b"{}",
            "a/data/weights/model_weights_config.json": config if isinstance(config, bytes) else json.dumps(config),
            "a/data/weights/weight_0": weight, "a/data/sample_inputs/model.pt": sample, **more,
        },
    )  # fmt: skip


def safetensors(path, header=None, data=FLOATS, length=None):
    header = {"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}} if header is None else header
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(content) if length is None else length) + content + data)
    return path


def folder(path, config="{}", **files):
    path.mkdir()
    (path / "config.json").write_text(config)
    for entry, make in files.items():
        make(path / entry.replace("__", "."))
    return path


def index(path, weight_map, shards=("s.safetensors",)):
    path.mkdir()
    for shard in shards:
        safetensors(path / shard)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return path


GOOD = b"".join([b"}(", text("w"), tensor(), b"u"])  # {"w": tensor([1, 2, 3, 4])}
PLACES = {  # where a payload stands in the pickle, and whether the file has weights all the same
    "alone": (lambda body: body, False),
    "as the weights": (lambda body: dict_of({"state_dict": body}), False),
    "beside the weights": (lambda body: dict_of({"state_dict": GOOD, "extra": body}), True),
    "before the weights": (lambda body: body + b"0" + GOOD, True),
    "in a list": (lambda body: list_of(body, GOOD), True),
    "as a network's attribute": (lambda body: module_state(extra=body), False),
    "as a network": (lambda body: module_state(_modules=dict_of({"a": body})), False),
}
CONTAINERS = {
    "torch zip": torch_zip,
    "legacy": legacy,
    "legacy, version": lambda path, p: legacy(path, whole(GOOD), head=[LEGACY[0], p, LEGACY[2]]),
    "legacy, system": lambda path, p: legacy(path, whole(GOOD), head=[*LEGACY[:2], p]),
    "legacy, keys": lambda path, p: legacy(path, whole(GOOD), keys=p),
    "bare pickle": lambda path, p: path.write_bytes(p),
    "TorchScript": torchscript,
    "TorchScript, constants": lambda path, p: torchscript(path, whole(GOOD), constants=p),
    "TorchScript, code": lambda path, p: torchscript(path, whole(GOOD), code=b"open('marker', 'w')\n" + p),
    "export, pickled weights": lambda path, p: export(path, export_config(use_pickle=True), weight=p),
    "export, sample": lambda path, p: export(path, sample=torch_zip(path.with_suffix(".in"), p).read_bytes()),
    "export, extern": lambda path, p: export(path, **{"a/extra/evil.pkl": p, "a/data/constants/c.pkl": p}),
    "torch zip, extra": lambda path, p: torch_zip(path, whole(GOOD), **{"a/extra.pkl": p, "b/data.pkl": p}),
    "safetensors": lambda path, p: safetensors(path, {
        "__metadata__": {"lsa_config": p.hex(), "pickle": p.decode("latin1")},
        "w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
    }),
    "folder": lambda path, p: folder(path, pytorch_model__bin=lambda file: torch_zip(file, p)),
    "index": lambda path, p: folder(
        path, shard__bin=lambda file: torch_zip(file, p),
        pytorch_model__bin__index__json=lambda file: file.write_text(json.dumps({"weight_map": {"w": "shard.bin"}})),
    ),
    "distributed": lambda path, p: folder(path, __metadata=lambda file: file.write_bytes(p)),
}  # fmt: skip


RUNS, MISLEADS, MODULES = corpus(Path("/marker"))


@pytest.fixture
def marker(tmp_path):
    """The file that payloads would write; hubconf.py beside it would write it too."""
    path = tmp_path / "marker"
    (tmp_path / "hubconf.py").write_text(f"open({str(path)!r}, 'w')\ndef build():\n    return 0\n")
    yield path
    assert not path.exists()


def is_good(found):
    return isinstance(found, dict) and found["w"].tolist() == [1, 2, 3, 4]


# ---- code that must not run -----------------------------------------------------------------------------


def test_the_payloads_do_run_where_something_unpickles_them(tmp_path):
    """Else the tests below would prove nothing."""
    (tmp_path / "run.py").write_text(
        "import io, pickle, sys, warnings\nfrom contextlib import suppress\nwarnings.simplefilter('ignore')\n"
        "for name in ('payload', 'payload2'):\n"
        "    with suppress(Exception): pickle.loads(open(f'{sys.argv[1]}/{name}', 'rb').read())\n"
    )
    (tmp_path / "all.py").write_text(
        "import os, sys\nimport torch, torch.hub, runpy\n"  # once for all: each child is a fork
        "for number in range(int(sys.argv[1])):\n"
        "    if os.fork() == 0:\n"
        "        sys.argv = ['run.py', str(number)]\n"
        "        sys.path.insert(0, os.getcwd())\n"
        "        runpy.run_path('run.py')\n"
        "        os._exit(0)\n"
        "    os.wait()\n"
    )
    markers = {}
    for number, payload in enumerate(RUNS):
        place = tmp_path / str(number)
        place.mkdir()
        markers[payload] = place / "marker"
        (place / "hubconf.py").write_text(f"open({str(place / 'marker')!r}, 'w')\ndef build():\n    return 0\n")
        body = corpus(place / "marker")[0][payload]
        (place / "payload").write_bytes(whole(body))
        (place / "payload2").write_bytes(whole(body, 2))  # in which names of Python 2 are translated
    root = str(Path(__file__).parent.parent)
    subprocess.run(
        [sys.executable, "all.py", str(len(RUNS))], cwd=tmp_path, env={**os.environ, "PYTHONPATH": root},
        timeout=120, check=True, capture_output=True,
    )  # fmt: skip
    assert [payload for payload, marker in markers.items() if not marker.exists()] == []


@pytest.mark.parametrize("payload", [*RUNS, *MISLEADS])
def test_what_a_pickle_would_run_never_runs(tmp_path, marker, payload):
    runs, misleads, _ = corpus(marker)
    body = {**runs, **misleads}[payload]
    for container, write in CONTAINERS.items():
        for place, (wrap, _) in PLACES.items():
            path = tmp_path / f"{container}, {place}"
            write(path, whole(wrap(body)))
            look(path)
            assert not marker.exists(), path
    for protocol in (2, 200):  # the one of old files; and one that does not exist
        for write in (torch_zip, legacy):
            look(write(tmp_path / "m.pt", whole(body, protocol)))
            assert not marker.exists(), protocol


@pytest.mark.parametrize("payload", RUNS)
def test_weights_beside_a_payload_are_read_and_the_payload_is_named(tmp_path, marker, payload):
    """Harmless, and useful: nothing of it runs, so that the weights can be audited all the same."""
    body = corpus(marker)[0][payload]
    for place, (wrap, has_weights) in PLACES.items():
        for container in (torch_zip, legacy):
            path = container(tmp_path / "m.pt", whole(wrap(body)))
            if payload == "name put together":  # what it imports could not be named
                assert "computes the name" in look(path)
            elif has_weights and place != "in a list":
                assert is_good(look(path)), place
                assert set(read_checkpoint(path).globals) - {"torch._utils._rebuild_tensor_v2"}
            elif place in ("alone", "as the weights"):
                assert isinstance(look(path), str), place


@pytest.mark.parametrize("container", ["torch zip", "legacy", "TorchScript", "folder"])
@pytest.mark.parametrize("network", MODULES)
def test_a_network_pickled_whole_brings_no_code_with_it(tmp_path, marker, network, container):
    body = corpus(marker)[2][network]
    for number, pickled in enumerate((body, dict_of({"model": body}), module_state(_modules=dict_of({"a": body})))):
        path = tmp_path / f"{number}"
        CONTAINERS[container](path, whole(pickled))
        look(path)
        assert not marker.exists()


def test_a_network_pickled_whole_and_left_alone_is_rebuilt(tmp_path):
    """Else the test above would refuse everything."""
    path = torch_zip(tmp_path / "m.pt", whole(module_state()))
    loaded = load_network(read_checkpoint(path), None, {})
    assert isinstance(loaded.body, nn.Linear)
    assert loaded.body.weight.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("variable", ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_WEIGHTS_ONLY_LOAD"])
def test_no_variable_of_the_environment_makes_a_payload_run(tmp_path, marker, monkeypatch, variable):
    monkeypatch.setenv(variable, "1")
    runs = corpus(marker)[0]
    for container in ("torch zip", "legacy", "bare pickle", "TorchScript", "export, pickled weights"):
        CONTAINERS[container](tmp_path / "m", whole(runs["os.system"]))
        assert isinstance(look(tmp_path / "m"), str)


@pytest.mark.parametrize(
    "architecture", ["evil.py:build", "os:system", "hubconf.py:build", "{folder}/hubconf.py:build"]
)
def test_a_file_names_no_code_as_its_architecture(tmp_path, marker, architecture):
    architecture = architecture.format(folder=tmp_path)
    described = {"lsa_checkpoint": 1, "architecture": architecture}
    pairs = {"lsa_checkpoint": b"K\x01", "architecture": text(architecture), "state_dict": GOOD}
    safe = {"__metadata__": {"lsa_checkpoint": json.dumps(described)}}
    for path in (
        torch_zip(tmp_path / "m.pt", whole(dict_of(pairs))),
        safetensors(tmp_path / "m.safetensors", {**safe, "w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}),
    ):
        assert "names Python code" in look(path)
    path = folder(tmp_path / "f", json.dumps({"architecture": architecture}), model__safetensors=safetensors)
    with pytest.raises(LsaError):
        load_network(read_checkpoint(path), None, {})


# ---- numbers and structures that mean more than they say --------------------------------------------------


def laughs(kind, depth=60):
    """A container that holds the one before twice, and so on: 2**60 leaves once written out."""
    once = {"tuple": b"h\x00h\x00\x86", "list": b"](h\x00h\x00e", "dict": b"}(K\x01h\x00K\x02h\x00u"}[kind]
    return b"K\x01q\x00" + (b"0" + once + b"q\x00") * depth


def grown():
    """Each list takes in the list before ten times, as items: by reference it stays small."""
    return b"]q\x00" + (b"0](" + b"h\x00" * 10 + b"eq\x00") * 40


def described(**pairs):
    values = {"lsa_checkpoint": b"K\x01", "architecture": text("lsa:moon-mlp"), "state_dict": GOOD}
    return dict_of({**values, **pairs})


COLLIDING = b"".join(big(number * (2**61 - 1)) + b"N" for number in range(200_000))
MANY = b"K\x01" * 200_000
LAYERS = b"}q\x00" + b"".join(  # each network holds the one before twice
    b"0" + name("torch.nn.modules.container", "Sequential") + b")\x81"
    + dict_of({"_parameters": dict_of({"w": tensor()}), "_buffers": b"}", "_modules": b"}(" + text("a") + b"h\x00" + text("b") + b"h\x00u"})
    + b"bq\x00"
    for _ in range(60)
)  # fmt: skip
LONG_NAMES = name("torch.nn.modules.linear", "Linear") + b")\x81" + dict_of(
    {"_parameters": dict_of({"w": tensor()}), "_buffers": b"}", "_modules": b"}"}
) + b"bq\x00" + text("n" * 1_000_000) + b"q\x01" + b"".join(
    b"00" + name("torch.nn.modules.container", "Sequential") + b")\x81"
    + dict_of({"_parameters": b"}", "_buffers": b"}", "_modules": b"}h\x01h\x00s"}) + b"bq\x00h\x01"
    for _ in range(150)
) + b"0"  # fmt: skip
DEEP_NETWORKS = b"Nq\x00" + b"".join(
    b"0" + name("torch.nn.modules.container", "Sequential") + b")\x81"
    + dict_of({"_parameters": b"}", "_buffers": b"}", "_modules": b"}K\x01h\x00s"}) + b"bq\x00"
    for _ in range(5_000)
)  # fmt: skip
SHARED_STATE = b"}(" + b"".join(text(f"{n}") + b"K\x01" for n in range(50_000)) + b"uq\x00" + list_of(
    *[name("x", "y") + b")\x81h\x00b"] * 5_000
)  # fmt: skip

# What is in a pickle; True: harmless, and read.
BOMBS = {
    "tuples of tuples": (dict_of({"state_dict": GOOD, "x": laughs("tuple")}), False),
    "lists of lists": (dict_of({"state_dict": GOOD, "x": laughs("list")}), False),
    "dictionaries of dictionaries": (laughs("dict"), False),
    "lists that take in lists": (dict_of({"state_dict": GOOD, "x": grown()}), False),
    "laughs in a description": (described(arch_args=dict_of({"x": laughs("list")})), False),
    "laughs in a history": (described(history=list_of(dict_of({"x": laughs("tuple")}))), False),
    "laughs in the class names": (described(class_names=laughs("list")), False),
    "laughs as the kind of a storage": (
        tuple_of(text("storage"), laughs("tuple"), text("0"), text("cpu"), integer(4)) + b"Q", False,
    ),
    "laughs as the key of a storage": (
        tuple_of(text("storage"), name("torch", "FloatStorage"), laughs("tuple"), text("cpu"), integer(4)) + b"Q", False,
    ),
    "laughs as the size of a storage": (
        tuple_of(text("storage"), name("torch", "FloatStorage"), text("0"), text("cpu"), laughs("list")) + b"Q", False,
    ),
    "laughs as a persistent id": (laughs("tuple") + b"Q", False),
    "laughs as the name of an import": (laughs("tuple") + text("x") + b"\x93", False),
    "laughs as arguments": (name("x", "y") + laughs("tuple") + b"R", False),
    "laughs as a key": (b"}" + laughs("tuple") + b"K\x01s", False),
    "a list inside itself": (dict_of({"state_dict": GOOD, "x": b"]q\x00h\x00a"}), True),
    "a description inside itself": (described(history=b"]q\x00h\x00a"), False),
    "a class name for each instruction": (described(class_names=b"](" + MANY + b"e"), False),
    "deep lists": (dict_of({"state_dict": GOOD, "x": b"]" * 100_000 + b"a" * 99_999}), True),
    "deep tuples": (b")" + b"\x85" * 100_000, False),
    "deep dictionaries": (b"}K\x01" * 100_000 + b"N" + b"s" * 100_000, False),
    "deep calls": (name("x", "y") + b")R" + b")R" * 100_000, False),
    "deep networks": (DEEP_NETWORKS, False),
    "marks": (b"(" * 1_000_000, False),
    "too many instructions": (b"]" * 2_100_000, False),
    "too many imports": (b"".join(b"c%x\nx\n" % n for n in range(100_000)), False),
    "keys with one hash": (b"}(" + COLLIDING + b"u", False),
    "keys with one hash, in pairs": (
        call(name("collections", "OrderedDict"), b"](" + b"".join(
            big(number * (2**61 - 1)) + b"N\x86" for number in range(200_000)
        ) + b"e"), False,
    ),
    "a long list turned many times": (
        b"](" + MANY + b"eq\x000](" + b"h\x00" * 500_000 + b"eq\x010" + call(name("collections", "OrderedDict"), b"h\x01"),
        False,
    ),
    "one dictionary made many times": (
        b"](" + b"K\x01K\x01\x86" * 100_000 + b"eq\x000" + name("collections", "OrderedDict") + b"q\x010("
        + b"h\x01h\x00\x85R" * 100_000 + b"l", False,
    ),
    "long arguments repeated": (
        b"(" + MANY + b"tq\x000" + name("builtins", "set") + b"q\x010(" + b"h\x01h\x00R" * 200_000 + b"t", False,
    ),
    "long arguments repeated with keywords": (
        b"(" + MANY + b"tq\x000" + name("x", "y") + b"q\x010}q\x020(" + b"h\x01h\x00h\x02\x92" * 200_000 + b"t", False,
    ),
    "networks that hold each other": (LAYERS, False),
    "networks with long names": (LONG_NAMES, False),
    "many objects with one state": (SHARED_STATE, False),
    "a number of a megabyte": (dict_of({"state_dict": GOOD, "x": b"\x8b" + struct.pack("<i", 2**20) + b"\x7f" * 2**20}), True),
    "a number of a megabyte as a size": (
        tuple_of(
            text("storage"), name("torch", "FloatStorage"), text("0"), text("cpu"),
            b"\x8b" + struct.pack("<i", 2**20) + b"\x7f" * 2**20,
        ) + b"Q", False,
    ),
    "a decimal number without end": (b"I" + b"9" * 1_000_000 + b"\n", False),
    "LONG4 of 2**31 - 1": (b"\x8b\xff\xff\xff\x7f1", False),
    "LONG4 of less than nothing": (b"\x8b\xff\xff\xff\xff1", False),
    "BINUNICODE8 of 2**63 - 1": (b"\x8d" + struct.pack("<Q", 2**63 - 1) + b"a", False),
    "BINBYTES8 of 2**40": (b"\x8e" + struct.pack("<Q", 2**40) + b"a", False),
    "BYTEARRAY8 of 2**40": (b"\x96" + struct.pack("<Q", 2**40) + b"a", False),
    "BINSTRING of less than nothing": (b"T\xff\xff\xff\xffa", False),
    "FRAME of 2**63 - 1": (b"\x95" + struct.pack("<Q", 2**63 - 1) + GOOD, True),
    "memo 2**32 - 1": (GOOD + b"r\xff\xff\xff\xff", True),
    "memo 2**32": (GOOD + b"p4294967296\n", False),
    "memo -1": (GOOD + b"p-1\n", False),
    "memo of a megabyte of digits": (GOOD + b"p" + b"1" * 1_000_000 + b"\n", False),
    "memo that was never filled": (b"h\x07", False),
    "memo after memo": (GOOD + b"\x94" * 100_000, True),
    "nothing on the stack": (b"0", False),
    "append to text": (text("a") + b"K\x01a", False),
    "append to a tensor": (tensor() + b"K\x01a", False),
    "items for a tuple": (b")(K\x01K\x02u", False),
    "items for a set": (b"\x8f(K\x01K\x02u", False),
    "an odd number of items": (b"}(K\x01u", False),
    "state of a number": (b"K\x01}b", False),
    "arguments that are a list": (name("x", "y") + b"]R", False),
    "the mark as a value": (b"((\x85", False),
    "half a character": (dict_of({"\ud800": tensor()}), True),
    "bytes that are no text": (b"X\x02\x00\x00\x00\xff\xfe", False),
    "names that are no text": (b"}(K\x01" + tensor() + b"NN\x88Nu", False),
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_pickle_that_means_more_than_it_says_ends_soon_and_small(tmp_path, bomb):
    body, harmless = BOMBS[bomb]
    found = look(torch_zip(tmp_path / "m.pt", whole(body)))
    assert isinstance(found, dict) is harmless, found


@pytest.mark.parametrize(
    "bomb",
    ["lists of lists", "too many instructions", "deep lists", "BINBYTES8 of 2**40", "FRAME of 2**63 - 1", "marks"],
)
def test_an_old_file_is_not_read_again_and_again_for_the_end_of_its_pickle(tmp_path, bomb):
    body, harmless = BOMBS[bomb]
    found = look(legacy(tmp_path / "m.pt", whole(body)))
    assert isinstance(found, dict) is harmless, found


def sized(shape, stride=None, **how):
    stride = stride or tuple(1 for _ in shape)
    return b"}(" + text("w") + tensor(shape=shape, stride=stride, **how) + b"u"


TENSORS = {  # over four stored numbers; True: harmless, and read
    "terabytes": (sized((2**40,)), False),
    "terabytes in the storage's words too": (sized((2**40,), stored=storage(numel=2**40)), False),
    "exabytes": (sized((2**61,), stored=storage(numel=2**61)), False),
    "a number of elements past 2**64": (sized((2**31, 2**31, 2**31)), False),
    "one number repeated into terabytes": (sized((2**40,), (0,)), False),
    "one number repeated into gigabytes": (sized((2**15, 2**15), (0, 0)), False),
    "one number repeated a little": (sized((3, 4), (0, 1)), True),
    "nothing, of a huge width": (sized((2**40, 0)), False),
    "nothing, of widths past 2**64": (sized((2**61, 2**61, 0)), False),
    "nothing": (sized((0, 4)), True),
    "a negative size": (sized((-1,)), False),
    "two negative sizes": (sized((-2, -2)), False),
    "a negative stride": (sized((4,), (-1,)), False),
    "a negative offset": (sized((1,), offset=-1), False),
    "an offset past the end": (sized((1,), offset=4), False),
    "an offset of 2**62": (sized((1,), offset=2**62), False),
    "a stride past the end": (sized((2,), (4,)), False),
    "a stride that runs to 2**64": (sized((5, 5), (2**61, 2**61)), False),
    "fewer strides than sizes": (sized((2, 2), (1,)), False),
    "a thousand dimensions": (sized((1,) * 1000), False),
    "a thousand dimensions of 2**61": (sized((2**61,) * 1000), False),
    "a storage that is not there": (sized((4,), stored=storage("7")), False),
    "a storage outside": (sized((4,), stored=storage("../version")), False),
    "a storage of an absolute path": (sized((4,), stored=storage("/etc/passwd")), False),
    "a storage of a name without end": (sized((4,), stored=storage("a" * 100_000)), False),
    "a storage with a line feed": (sized((4,), stored=storage("a\nb\x1b[31m")), False),
    "a storage of wider numbers": (sized((4,), stored=storage(kind="DoubleStorage")), False),
    "a storage of two types": (
        b"}(" + text("w") + tensor() + text("v") + tensor(storage(kind="IntStorage")) + b"u", False,
    ),
    "a storage of no type": (sized((4,), stored=storage(kind="QInt8Storage")), False),
    "a storage of bytes": (sized((4,), stored=storage(kind="UntypedStorage", numel=16)), True),
    "a view of a storage": (
        b"}(" + text("w") + tensor(tuple_of(
            text("storage"), name("torch", "FloatStorage"), text("0"), text("cpu"), integer(4),
            tuple_of(text("1"), integer(2), integer(2)),
        ) + b"Q", shape=(3,)) + b"u", False,
    ),
    "a storage whose numel is true": (
        b"}(" + text("w") + tensor(
            tuple_of(text("storage"), name("torch", "FloatStorage"), text("0"), text("cpu"), b"\x88") + b"Q"
        ) + b"u", False,
    ),
    "a size that is true": (
        b"}(" + text("w") + call(
            name("torch._utils", "_rebuild_tensor_v2"), storage(), integer(0), b"\x88\x85", b"\x88\x85", b"\x89", b"}"
        ) + b"u", False,
    ),
    "a size that is a float": (
        b"}(" + text("w") + call(
            name("torch._utils", "_rebuild_tensor_v2"), storage(), integer(0), b"G" + struct.pack(">d", 2) + b"\x85",
            b"K\x01\x85", b"\x89", b"}",
        ) + b"u", False,
    ),
    "numbers seen as another type": (
        b"}(" + text("w") + call(
            name("torch._utils", "_rebuild_tensor_v3"), storage(), integer(0), b"K\x04\x85", b"K\x01\x85", b"\x89", b"}",
            name("torch", "float64"),
        ) + b"u", False,
    ),
    "numbers seen as no type": (
        b"}(" + text("w") + call(
            name("torch._utils", "_rebuild_tensor_v3"), storage(), integer(0), b"K\x04\x85", b"K\x01\x85", b"\x89", b"}",
            name("torch", "load"),
        ) + b"u", False,
    ),
    "numbers conjugated when read": (
        b"}(" + text("w") + call(
            name("torch._utils", "_rebuild_tensor_v2"), storage(kind="ComplexFloatStorage", numel=2), integer(0),
            b"K\x02\x85", b"K\x01\x85", b"\x89", b"}", dict_of({"conj": b"\x88"}),
        ) + b"u", False,
    ),
    "many tensors of one storage": (
        b"}(" + b"".join(text(f"w{n}") + tensor() for n in range(1000)) + b"u", True,
    ),
    "many repeated tensors": (
        b"}(" + b"".join(text(f"w{n}") + tensor(shape=(2**20,), stride=(0,)) for n in range(1000)) + b"u", False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("container", [torch_zip, legacy])
@pytest.mark.parametrize("claim", TENSORS)
def test_a_tensor_covers_what_is_stored_or_is_refused_before_any_memory_is_taken(tmp_path, claim, container):
    body, harmless = TENSORS[claim]
    numbers = {"data": struct.pack("<q", 16) + FLOATS} if claim == "a storage of bytes" and container is legacy else {}
    found = look(container(tmp_path / "m.pt", whole(body), **numbers))
    assert isinstance(found, dict) is harmless, found


def test_tensors_that_share_a_large_storage_do_not_multiply_it(tmp_path):
    body = b"}(" + b"".join(
        text(f"w{n}") + tensor(storage(numel=2**22), shape=(2**22,), stride=(1,)) for n in range(1000)
    ) + b"u"  # fmt: skip
    assert "would need" in look(torch_zip(tmp_path / "m.pt", whole(body), data=bytes(2**24)))


LEGACY_PARTS = {
    "a negative number of elements": {"data": struct.pack("<q", -1) + FLOATS},
    "2**62 elements": {"data": struct.pack("<q", 2**62) + FLOATS},
    "2**61 + 4 elements, whose bytes wrap round": {"data": struct.pack("<q", 2**62 + 4) + FLOATS},
    "no elements": {"data": b""},
    "half a number of elements": {"data": b"\4\0\0"},
    "fewer elements": {"data": struct.pack("<q", 2) + FLOATS},
    "keys of nothing": {"keys": pickle.dumps(["7"], 2)},
    "keys that are numbers": {"keys": pickle.dumps([0], 2)},
    "keys that are a mapping": {"keys": pickle.dumps({"0": 1}, 2)},
    "keys that are laughs": {"keys": whole(b"]" + laughs("tuple") + b"a")},
    "no keys": {"keys": pickle.dumps([], 2)},
    "a key a million times": {"keys": whole(b"](" + text("0") + b"q\x00" + b"h\x00" * 1_000_000 + b"e")},
    "a big-endian machine": {"head": [*LEGACY[:2], pickle.dumps({"little_endian": False}, 2)]},
    "one pickle": {"head": [LEGACY[0]], "keys": b"", "data": b""},
}


@pytest.mark.parametrize("parts", LEGACY_PARTS)
def test_the_parts_of_an_old_file_are_checked_against_each_other(tmp_path, parts):
    assert isinstance(look(legacy(tmp_path / "m.pt", whole(GOOD), **LEGACY_PARTS[parts])), str)


# ---- zip ------------------------------------------------------------------------------------------------


def edited(path, edit):
    data = bytearray(torch_zip(path, whole(GOOD)).read_bytes())
    directory = data.index(b"PK\1\2")
    end = data.rindex(b"PK\5\6")
    path.write_bytes(edit(data, directory, end) or data)


def field(offset, form, value, where="end"):
    """A change of one number in the end record, the first entry of the list, or the first entry itself."""

    def edit(data, directory, end):
        struct.pack_into(form, data, {"end": end, "list": directory, "entry": 0}[where] + offset, value)

    return edit


def zip64(count, size, offset):
    """The end record says that a 64-bit one has the numbers."""

    def edit(data, directory, end):
        struct.pack_into("<HHII", data, end + 8, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
        record = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, offset)
        locator = struct.pack("<4sIQI", b"PK\6\7", 0, end, 1)
        return data[:end] + record + locator + data[end:]

    return edit


def two_entries(path, first, second):
    with zipfile.ZipFile(path, "w") as archive:  # warns of a duplicate
        archive.writestr(first, whole(GOOD))
        archive.writestr(second, whole(RUN_ANY))
        archive.writestr("a/data/0", FLOATS)


RUN_ANY = call(name("os", "system"), text("true"))


def overlapping(path):
    """Every entry of the list is the same 16 MB of the file."""
    data = bytearray(torch_zip(path, whole(GOOD), data=bytes(2**24)).read_bytes())
    directory, end = data.index(b"PK\1\2"), data.rindex(b"PK\5\6")
    entries = bytes(data[directory:end])
    at = entries.index(b"a/data/0") - 46
    entry = entries[at : at + 46 + 8]
    many = b"".join(entry[:46] + b"a/data/%X" % n for n in range(1, 10))
    struct.pack_into("<HHI", data, end + 8, 4 + 9, 4 + 9, len(entries) + len(many))
    path.write_bytes(data[:end] + many + data[end:])


def sparse_list(path):
    """A file of 20 GB of holes that says 19 GB of it are the list of its entries."""
    with path.open("wb") as file:
        file.write(b"PK\3\4")
        file.truncate(20 * 2**30)
        file.seek(0, os.SEEK_END)
        place = file.tell()
        size = 19 * 2**30
        file.write(struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, 10**8, 10**8, size, place - size))
        file.write(struct.pack("<4sIQI", b"PK\6\7", 0, place, 1))
        file.write(struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0))


def symlinks(path):
    link = zipfile.ZipInfo("a/data/0")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", whole(GOOD))
        archive.writestr(link, FLOATS)


ZIPS = {  # True: harmless, and read
    "as it should be": (lambda path: torch_zip(path, whole(GOOD)), True),
    "compressed": (lambda path: zipped(path, {"a/data.pkl": whole(GOOD), "a/data/0": FLOATS}, zipfile.ZIP_DEFLATED), False),
    "bomb of zeros": (lambda path: zipped(path, {"a/data.pkl": bytes(10**8)}, zipfile.ZIP_DEFLATED), False),
    "bomb of bzip2": (lambda path: zipped(path, {"a/data/0": bytes(10**8)}, zipfile.ZIP_BZIP2), False),
    "bomb beside": (lambda path: zipped(
        path, {"a/data.pkl": whole(GOOD), "a/data/0": FLOATS, "b/x": bytes(10**7)}, zipfile.ZIP_LZMA), False),
    "entry above": (lambda path: torch_zip(path, whole(GOOD), **{"a/../../x": b""}), False),
    "entry above, at once": (lambda path: torch_zip(path, whole(GOOD), **{"../x": b""}), False),
    "absolute entry": (lambda path: torch_zip(path, whole(GOOD), **{"/etc/x": b""}), False),
    "backslash": (lambda path: torch_zip(path, whole(GOOD), **{"a\\..\\x": b""}), False),
    "two data.pkl": (lambda path: two_entries(path, "a/data.pkl", "a/data.pkl"), False),
    "two roots": (lambda path: two_entries(path, "a/data.pkl", "b/data.pkl"), False),
    "two cases": (lambda path: two_entries(path, "a/data.pkl", "a/DATA.PKL"), False),
    "null in a name": (lambda path: edited(path, lambda data, *_: data.replace(b"a/version", b"a/byteo\0\0")), False),
    "no data.pkl": (lambda path: zipped(path, {"a/data/0": FLOATS}), False),
    "data.pkl that is a folder": (lambda path: zipped(path, {"a/data.pkl/x": b"", "a/data/0": FLOATS}), False),
    "no folder": (lambda path: zipped(path, {"data.pkl": whole(GOOD), "data/0": FLOATS}), False),
    "big-endian": (lambda path: zipped(path, {"a/data.pkl": whole(GOOD), "a/byteorder": b"big", "a/data/0": FLOATS}), False),
    "byte order of a megabyte": (lambda path: torch_zip(path, whole(GOOD), **{"a/byteorder": b"little" * 10**6}), False),
    "link": (symlinks, False),
    "comment that looks like an end": (lambda path: edited(
        path, lambda data, directory, end: data[:-2] + b"\x16\0" + data[end:]), False),
    "garbage after the end": (lambda path: edited(path, lambda data, *_: data + b"x" * 100), True),
    "garbage before the entries": (lambda path: edited(path, lambda data, *_: b"PK\3\4" + b"x" * 100 + data), False),
    "overlapping entries": (overlapping, False),
    "sparse list of entries": (sparse_list, False),
    "60,000 entries": (lambda path: zipped(path, {f"a/{n}": b"" for n in range(60_000)}), False),
    "encrypted": (lambda path: edited(path, field(8, "<H", 1, "list")), False),
    "checksum": (lambda path: edited(path, field(16, "<I", 1, "list")), False),
    "version 99": (lambda path: edited(path, field(6, "<H", 99, "list")), False),
    "method 99": (lambda path: edited(path, field(10, "<H", 99, "list")), False),
    "size of 4 GB": (lambda path: edited(path, field(24, "<I", 2**32 - 2, "list")), False),
    "size of 2**64": (lambda path: edited(path, field(24, "<I", 2**32 - 1, "list")), False),
    "entry outside": (lambda path: edited(path, field(42, "<I", 2**31, "list")), False),
    "entry in another entry": (lambda path: edited(path, field(42, "<I", 7, "list")), False),
    "long name in the entry": (lambda path: edited(path, field(26, "<H", 65535, "entry")), False),
    "other name in the entry": (lambda path: edited(path, field(30, "<B", 66, "entry")), True),
    "list elsewhere": (lambda path: edited(path, field(16, "<I", 0)), False),
    "list past the end": (lambda path: edited(path, field(16, "<I", 2**32 - 2)), False),
    "list of 4 GB": (lambda path: edited(path, field(12, "<I", 2**32 - 2)), False),
    "no list": (lambda path: edited(path, field(12, "<I", 0)), False),
    "several disks": (lambda path: edited(path, field(4, "<H", 7)), False),
    "zip64, absurd count": (lambda path: edited(path, zip64(2**63, 10, 0)), False),
    "zip64, absurd size": (lambda path: edited(path, zip64(5, 2**63, 0)), False),
    "zip64, absurd offset": (lambda path: edited(path, zip64(5, 10, 2**64 - 1)), False),
    "zip64, all absurd": (lambda path: edited(path, zip64(2**64 - 1, 2**64 - 1, 2**64 - 1)), False),
}  # fmt: skip


@pytest.mark.parametrize("trick", ZIPS)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_file_is_what_its_list_says_or_is_refused(tmp_path, trick):
    make, harmless = ZIPS[trick]
    make(tmp_path / "m.pt")
    found = look(tmp_path / "m.pt")
    assert is_good(found) is harmless, found
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["m.pt"]


# ---- torch.export ---------------------------------------------------------------------------------------


def sizes(*values):
    return [{"as_int": value} for value in values]


EXPORTS = {
    "terabytes": export_config(meta={"sizes": sizes(2**40)}),
    "past 2**64": export_config(meta={"sizes": sizes(2**31, 2**31, 2**31), "strides": sizes(1, 1, 1)}),
    "repeated": export_config(meta={"sizes": sizes(2**40), "strides": sizes(0)}),
    "negative": export_config(meta={"sizes": sizes(-4)}),
    "negative offset": export_config(meta={"storage_offset": {"as_int": -1}}),
    "offset past the end": export_config(meta={"storage_offset": {"as_int": 4}}),
    "a size that is true": export_config(meta={"sizes": sizes(True)}),
    "a size that is text": export_config(meta={"sizes": sizes("4")}),
    "a symbolic size": export_config(meta={"sizes": [{"as_expr": {"expr_str": "__import__('os')"}}]}),
    "a size that is no mapping": export_config(meta={"sizes": [4]}),
    "sizes that are a number": export_config(meta={"sizes": 4}),
    "other strides": export_config(meta={"strides": sizes(1, 1)}),
    "a thousand dimensions": export_config(meta={"sizes": sizes(*[2**61] * 1000), "strides": sizes(*[1] * 1000)}),
    "an unknown type": export_config(meta={"dtype": 99}),
    "a type that is a list": export_config(meta={"dtype": []}),
    "a wider type": export_config(meta={"dtype": 8}),
    "a pickle": export_config(use_pickle=True),
    "a file outside": export_config(path_name="../../../version"),
    "an absolute file": export_config(path_name="/etc/passwd"),
    "a file that is a list": export_config(path_name=["weight_0"]),
    "a file that is not there": export_config(path_name="weight_7"),
    "no meta": {"config": {"w": {"path_name": "weight_0", "use_pickle": False}}},
    "a list": {"config": [1]},
    "a number": {"config": {"w": 1}},
    "text": {"config": {"w": "x" * 1000}},
    "no config": {},
    "deep": b'{"config":' * 100_000,
    "no JSON": b"\x80\x02}.",
    "other letters": b"\xff\xfe\x00\xd8",
}


@pytest.mark.parametrize("config", EXPORTS)
def test_what_an_exported_program_says_of_its_weights_is_not_believed(tmp_path, config):
    assert isinstance(look(export(tmp_path / "m.pt2", EXPORTS[config])), str)


def test_an_exported_program_that_is_whole_is_read(tmp_path):
    assert is_good(look(export(tmp_path / "m.pt2")))


# ---- safetensors, index, folder -------------------------------------------------------------------------


def entry(dtype="F32", shape=(4,), offsets=(0, 16)):
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


HEADERS = {
    "terabytes": entry(shape=[2**40]),
    "terabytes of both": entry(shape=[2**40], offsets=[0, 2**42]),
    "past 2**64": entry(shape=[2**31, 2**31, 2**31]),
    "wrapping to 16": entry(shape=[2**62, 4], offsets=[0, 16]),
    "nothing, of a huge width": entry(shape=[2**40, 0], offsets=[0, 0]),
    "negative": entry(shape=[-4]),
    "two negatives": entry(shape=[-2, -2]),
    "backwards": entry(offsets=[16, 0]),
    "past the end": entry(offsets=[16, 32]),
    "negative offset": entry(offsets=[-16, 0]),
    "offset of 2**64": entry(offsets=[2**64, 2**64 + 16]),
    "one offset": entry(offsets=[0]),
    "offsets that are floats": entry(offsets=[0.0, 16.0]),
    "a shape that is true": entry(shape=[True, 4]),
    "a shape that is text": entry(shape="4"),
    "a shape that is a mapping": entry(shape={"4": 1}),
    "a million dimensions": entry(shape=[1] * 1_000_000),
    "a hundred thousand large dimensions": entry(shape=[2**61] * 100_000),
    "an unknown type": entry(dtype="F4"),
    "a type that is a list": entry(dtype=[]),
    "a wider type": entry(dtype="F64"),
    "no entry": {"w": None},
    "an entry that is text": {"w": "x"},
    "overlapping": {"v": entry()["w"], **entry()},
    "a gap": entry(shape=[2], offsets=[8, 16]),
    "something left over": entry(shape=[2], offsets=[0, 8]),
    "no tensors": {"__metadata__": {}},
    "a list": b"[1]" + b" " * 20,
    "a description that is a list": {"__metadata__": {"lsa_checkpoint": ["x"]}, **entry()},
    "a description that is no JSON": {"__metadata__": {"lsa_checkpoint": "x"}, **entry()},
    "a deep description": {"__metadata__": {"lsa_checkpoint": '{"a":' * 100_000}, **entry()},
    "a description that is a number": {"__metadata__": {"lsa_checkpoint": "1" * 10_000}, **entry()},
    "deep": b'{"a":' * 100_000,
    "deep list": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a number of a megabyte": b'{"a":' + b"1" * 1_000_000 + b"}",
    "infinity": b'{"w":{"dtype":"F32","shape":[Infinity],"data_offsets":[0,1e999]}}',
    "no text": b'{"\xff\xff":1}',
    "a name with a line feed": {"a\nb\x1b[31m": None},
    "a name without end": {"a" * 100_000: None},
    "half a character as a name": {"\ud800": None},
    "empty lists": b'{"a":[' + b"[]," * 4_000_000 + b"[]]}",
    "many empty tensors": {str(n): {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for n in range(100_000)},
}


@pytest.mark.parametrize("header", HEADERS)
def test_what_a_safetensors_header_says_is_not_believed(tmp_path, header):
    assert isinstance(look(safetensors(tmp_path / "m.safetensors", HEADERS[header])), str)


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}])
def test_a_file_without_metadata_of_lsa_is_read(tmp_path, metadata):
    assert is_good(look(safetensors(tmp_path / "m", {"__metadata__": metadata, **entry()})))


@pytest.mark.parametrize(
    "metadata", [[], "x", 7, {"a": {"b": []}}, {"lsa_checkpoint": None}, {"lsa_checkpoint": '{"\ud800": 1}'}]
)
def test_metadata_that_the_library_refuses_is_refused(tmp_path, metadata):
    """No program that reads safetensors with the library could use the file."""
    said = look(safetensors(tmp_path / "m", {"__metadata__": metadata, **entry()}))
    assert "is a damaged safetensors file ('invalid JSON in header: " in said


@pytest.mark.parametrize("length", [0, 1, 15, 2**24, 2**31, 2**39, 2**63, 2**64 - 1])
def test_a_header_of_another_length_than_it_says_is_refused(tmp_path, length):
    assert isinstance(look(safetensors(tmp_path / "m", length=length)), str)


def self_listed(path):
    index(path, {"w": "model.safetensors.index.json"})


def linked(path, target):
    index(path, {"w": "link"})
    (path / "link").symlink_to(target)


def piped(path, entry):
    index(path, {"w": "p"})
    os.mkfifo(path / entry)


INDEXES = {
    "above": lambda path: index(path, {"w": "../s.safetensors"}),
    "below": lambda path: index(path, {"w": "a/s.safetensors"}),
    "absolute": lambda path: index(path, {"w": "/etc/passwd"}),
    "this folder": lambda path: index(path, {"w": "."}),
    "the folder above": lambda path: index(path, {"w": ".."}),
    "no name": lambda path: index(path, {"w": ""}),
    "a slash after": lambda path: index(path, {"w": "s.safetensors/"}),
    "null": lambda path: index(path, {"w": "s.safetensors\0"}),
    "half a character": lambda path: index(path, {"w": "\ud800"}),
    "a name without end": lambda path: index(path, {"w": "s" * 100_000}),
    "a line feed": lambda path: index(path, {"w": "a\nb"}),
    "a number": lambda path: index(path, {"w": 7}),
    "a list": lambda path: index(path, {"w": ["s.safetensors"]}),
    "itself": self_listed,
    "its folder by a link": lambda path: linked(path, "."),
    "missing": lambda path: index(path, {"w": "t.safetensors"}),
    "one missing": lambda path: index(path, {"w": "s.safetensors", "v": "t.safetensors"}),
    "another tensor": lambda path: index(path, {"v": "s.safetensors"}),
    "10,000 files": lambda path: index(path, {str(n): f"{n}" for n in range(10_000)}),
    "300 files": lambda path: index(path, {"w": "s0", **{f"w{n}": f"s{n}" for n in range(300)}}, [f"s{n}" for n in range(300)]),
    "a link outside": lambda path: linked(path, "/etc/passwd"),
    "a link to a device": lambda path: linked(path, "/dev/zero"),
    "a link above": lambda path: linked(path, "../x"),
    "a link to itself": lambda path: linked(path, "link"),
    "a link to nothing": lambda path: linked(path, "nothing"),
    "a pipe": lambda path: piped(path, "p"),
    "no mapping": lambda path: folder(
        path, model__safetensors__index__json=lambda file: file.write_text('{"weight_map": ["s"]}')),
    "deep": lambda path: folder(
        path, model__safetensors__index__json=lambda file: file.write_text('{"weight_map":' * 100_000)),
    "no index": lambda path: folder(path, model__safetensors__index__json=lambda file: file.mkdir()),
    "of another kind": lambda path: folder(path, pytorch_model__bin=lambda file: torchscript(file, whole(module_state()))),
    "a folder for a file": lambda path: folder(path, model__safetensors=lambda file: file.mkdir()),
    "a folder in a folder": lambda path: folder(
        path, model__safetensors=lambda file: folder(file, model__safetensors=safetensors)),
    "weights by a link to itself": lambda path: folder(path, model__safetensors=lambda file: file.symlink_to(file.name)),
    "weights by a link to the folder": lambda path: folder(path, model__safetensors=lambda file: file.symlink_to(".")),
    "weights by a link outside": lambda path: folder(path, model__safetensors=lambda file: file.symlink_to("/etc/passwd")),
    "weights from a pipe": lambda path: folder(path, model__safetensors=os.mkfifo),
    "configuration that is a list": lambda path: folder(path, "[]", model__safetensors=safetensors),
    "configuration that is deep": lambda path: folder(path, '{"a":' * 100_000, model__safetensors=safetensors),
    "configuration of 20 MB": lambda path: folder(path, " " * 20_000_000, model__safetensors=safetensors),
    "configuration from a pipe": lambda path: folder(
        path, model__safetensors=safetensors, preprocessor_config__json=os.mkfifo),
    "configuration by a link outside": lambda path: folder(
        path, model__safetensors=safetensors, preprocessor_config__json=lambda file: file.symlink_to("/etc/passwd")),
    "configuration that is a folder": lambda path: folder(
        path, model__safetensors=safetensors, preprocessor_config__json=lambda file: file.mkdir()),
}  # fmt: skip


@pytest.mark.parametrize("trick", INDEXES)
def test_a_folder_of_weights_leads_nowhere_else(tmp_path, trick):
    safetensors(tmp_path / "x")
    safetensors(tmp_path / "s.safetensors")
    INDEXES[trick](tmp_path / "f")
    assert isinstance(look(tmp_path / "f"), str)


def test_an_index_by_itself_leads_nowhere_else_either(tmp_path):
    index(tmp_path / "f", {"w": "../x"})
    safetensors(tmp_path / "x")
    assert "not in its folder" in look(tmp_path / "f" / "model.safetensors.index.json")


def test_links_within_the_folder_and_into_the_cache_of_hugging_face_are_followed(tmp_path):
    index(tmp_path / "f", {"w": "link"})
    (tmp_path / "f" / "link").symlink_to("s.safetensors")
    assert is_good(look(tmp_path / "f"))
    (tmp_path / "models" / "blobs").mkdir(parents=True)
    safetensors(tmp_path / "models" / "blobs" / "0123")
    (tmp_path / "models" / "snapshots").mkdir()
    path = folder(
        tmp_path / "models" / "snapshots" / "main",
        model__safetensors=lambda file: file.symlink_to("../../blobs/0123"),
    )
    assert is_good(look(path))


# ---- what is no file, or no whole one -------------------------------------------------------------------


def test_pipes_devices_and_loops_are_refused_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for path in (
        tmp_path / "pipe",
        tmp_path / "loop",
        tmp_path / "zero",
        Path("/dev/zero"),
        Path("/dev/null"),
        tmp_path,
    ):
        assert isinstance(look(path), str), path
    for path in ("a" * 300, "\0", "\ud800", "", tmp_path / "pipe" / "x"):
        assert isinstance(look(path), str), path


@pytest.mark.parametrize("start", [b"PK\3\4", b"\x80\x02", struct.pack("<Q", 2**30) + b"{", LEGACY[0], b"{", b"\0"])
def test_holes_of_terabytes_are_not_read(tmp_path, start):
    path = tmp_path / "m.pt"
    with path.open("wb") as file:
        file.write(start)
        file.truncate(2**41)
    assert isinstance(look(path), str)


@pytest.mark.skipif(not hasattr(os, "setuid"), reason="users are of Unix")
def test_what_may_not_be_read_is_said(tmp_path):
    """By another user where this one is root, who may read everything."""
    closed = index(tmp_path / "closed", {"w": "s.safetensors"})
    locked = safetensors(tmp_path / "m")
    half = index(tmp_path / "half", {"w": "s.safetensors"})
    for path, mode in ((closed, 0), (locked, 0), (half / "s.safetensors", 0)):
        path.chmod(mode)
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            if os.getuid() == 0:
                for parent in (tmp_path, *tmp_path.parents):
                    if parent != Path("/tmp") and parent != Path("/"):
                        parent.chmod(0o755)
                os.setuid(65534)
            for path in (closed, locked, half):
                with pytest.raises(CheckpointError, match="cannot be read: Permission"):
                    read_checkpoint(path)
            code = 0
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    for path in (closed, locked):
        path.chmod(0o755)
    assert status == 0


@pytest.mark.parametrize("written", ["a\nb.pt", "a\x1b[31mb.pt", "a\u202eb.pt", "-rf.pt", "a b;c.pt", b"a\xff.pt"])
def test_file_names_with_control_characters_are_only_names(tmp_path, written):
    path = tmp_path / os.fsdecode(written)
    torch_zip(path, whole(GOOD))
    assert is_good(look(path))
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="is empty") as caught:
        read_checkpoint(path)
    assert printable(str(caught.value)).encode().isascii() or "\u202e" in str(path)


VALID = {
    "torch zip": lambda path: torch_zip(path, whole(GOOD)),
    "legacy": lambda path: legacy(path, whole(GOOD)),
    "TorchScript": lambda path: torchscript(path, whole(module_state())),
    "export": export,
    "safetensors": safetensors,
    "network": lambda path: torch_zip(path, whole(module_state())),
    "old network": lambda path: legacy(path, whole(module_state())),
}


@pytest.mark.parametrize("kind", VALID)
def test_a_file_cut_short_anywhere_is_refused(tmp_path, kind):
    path = tmp_path / "m.pt"
    VALID[kind](path)
    data = path.read_bytes()
    assert isinstance(look(path), dict) or kind == "TorchScript"
    for length in {*range(0, len(data), max(1, len(data) // 150)), len(data) - 1}:
        path.write_bytes(data[:length])
        assert isinstance(look(path), str), length
    for length in range(0, len(data), max(1, len(data) // 50)):  # zeros at the end, as a broken download leaves
        path.write_bytes(data[:length] + bytes(len(data) - length))
        assert kind == "safetensors" or isinstance(look(path), str) or length > len(data) - 60


# ---- what a file may make of the network that is built for it -------------------------------------------


def resnet(classes):
    """The weights of a network that is recognised, whose last layer claims a width."""
    from torchvision.models import resnet18

    return {**resnet18(num_classes=2).state_dict(), **classes}


ZERO = torch.zeros(1)
WIDTHS = {
    "of a million layers": lambda path: safetensors(
        path, {"__metadata__": {"lsa_checkpoint": json.dumps(
            {"lsa_checkpoint": 1, "architecture": "timm:vit_base_patch16_224", "arch_args": {"depth": 10**6}}
        )}, **entry()},
    ),
    "described": lambda path: safetensors(
        path, {"__metadata__": {"lsa_checkpoint": json.dumps(
            {"lsa_checkpoint": 1, "architecture": "torchvision:resnet18", "arch_args": {"num_classes": 10**6}}
        )}, **entry()},
    ),
    "of a configuration": lambda path: folder(
        path, json.dumps({"architecture": "resnet18", "num_classes": 10**6}), model__safetensors=safetensors
    ),
    "of one number repeated": lambda path: torch.save(
        resnet({"fc.bias": ZERO.expand(10**6), "fc.weight": ZERO.expand(10**6, 1)}), path
    ),
    "of nothing": lambda path: torch.save(
        resnet({"fc.bias": torch.zeros(10**6, 0), "fc.weight": torch.zeros(10**6, 0)}), path
    ),
}  # fmt: skip


@pytest.mark.parametrize("width", WIDTHS)
def test_no_network_is_built_wider_or_deeper_than_its_weights(tmp_path, width):
    path = tmp_path / "m"
    WIDTHS[width](path)
    for arch in (None,) if width == "of a million layers" else (None, "torchvision:resnet18"):
        with watched(20, 1000), pytest.raises(LsaError) as caught:
            load_network(read_checkpoint(path), arch, {})
        sentence_of(caught.value)


ARGUMENTS = [
    {"num_classes": value} for value in (10**15, 10**400, -1, 0, "x", [1], 1.5, True, None)
] + [{"weights": "DEFAULT"}, {"pretrained": True}, {"checkpoint_path": "/etc/passwd"}, {"pretrained_cfg": {"file": "/x"}},
     {"cache_dir": "/x"}, {"block": "os.system"}, {"": 1}, {"a b": 1}, {"self": 1}, {"norm_layer": "evil.py:x"}]  # fmt: skip


@pytest.mark.parametrize("architecture", ["torchvision:resnet18", "timm:resnet18", "lsa:mnist-cnn", "timm:hf-hub:a/b"])
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_arguments_of_a_description_are_not_believed(tmp_path, architecture):
    pytest.importorskip(architecture.partition(":")[0].replace("lsa", "torch"))
    for arguments in ARGUMENTS:
        described = {"lsa_checkpoint": 1, "architecture": architecture, "arch_args": arguments}
        safetensors(tmp_path / "m", {"__metadata__": {"lsa_checkpoint": json.dumps(described)}, **entry()})
        with watched(20), pytest.raises(LsaError) as caught:
            load_network(read_checkpoint(tmp_path / "m"), None, {})
        sentence_of(caught.value)


# ---- fuzz -----------------------------------------------------------------------------------------------

EDITS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "insert", "delete", "cut", "splice", "number", "repeat"]),
        st.integers(0, 2**16),
        st.integers(0, 2**16),
        st.sampled_from(
            [b"(", b".", b"Q", b"R", b"b", b"t", b"u", b"e", b"h\x00", b"q\x00", b"0", b"2", b"\x81", b"\x93", b"\x94",
             b"}", b"]", b")", b"N", b"K\xff", b"\x85", b"J\xff\xff\xff\xff", b"\x8a\x08" + b"\xff" * 7 + b"\x7f",
             RUN_ANY, b"cos\nsystem\n", b"{", b"[", b'"', b",", b"-", b"1e9", b"null", b"PK\1\2", b"\0" * 8, b"\xff" * 8]
        ),
    ),
    min_size=1, max_size=5,
)  # fmt: skip


def mutated(data, edits):
    data = bytearray(data)
    for kind, first, second, piece in edits:
        at = first % (len(data) + 1)
        to = min(len(data), at + second % 40)
        if kind == "flip" and at < len(data):
            data[at] ^= 1 << (second % 8)
        elif kind == "insert":
            data[at:at] = piece
        elif kind == "delete":
            del data[at:to]
        elif kind == "cut":
            del data[at:]
        elif kind == "splice":
            other = second % (len(data) + 1)
            data[at : at + len(piece)] = data[other : other + 30]
        elif kind == "number" and at < len(data):
            data[at] = second % 256
        elif kind == "repeat":
            data[at:at] = data[at:to] * 3
    return bytes(data)


def real_pickle(value):
    """The data.pkl of what torch.save writes, and its stored numbers."""
    buffer = BytesIO()
    torch.save(value, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def rezipped(entries):
    return lambda path, data: zipped(
        path, {f"a/{name}": data if name == "data.pkl" else content for name, content in entries.items()}
    )


def fuzz_targets():
    torch.manual_seed(0)
    network = nn.Sequential(OrderedDict(a=nn.Linear(3, 2), b=nn.BatchNorm1d(2), c=nn.ReLU(), d=nn.Linear(2, 2)))
    state = {"state_dict": network.state_dict(), "epoch": 3, "history": [1.5, "x", None, {"a": (1, 2)}]}
    described = {
        "lsa_checkpoint": 1,
        "architecture": "lsa:moon-mlp",
        "mean": [0.5],
        "std": [0.5],
        "state_dict": state["state_dict"],
    }
    legacy_file, zip_file = BytesIO(), BytesIO()
    torch.save(state, legacy_file, _use_new_zipfile_serialization=False)
    torch.save(state, zip_file)
    plain, module, ours = real_pickle(state), real_pickle(network), real_pickle(described)
    weights = export_config(), json.dumps(entry()).encode()
    return {
        "torch zip": (zip_file.getvalue(), write_bytes, 300),
        "legacy": (legacy_file.getvalue(), write_bytes, 700),
        "pickle in a zip": (plain["data.pkl"], rezipped(plain), 700),
        "pickle of a network": (module["data.pkl"], rezipped(module), 700),
        "pickle of a description": (ours["data.pkl"], rezipped(ours), 400),
        "pickle of TorchScript": (module["data.pkl"], torchscript, 300),
        "payloads": (whole(b"".join(body + b"0" for body in RUNS.values()) + GOOD), torch_zip, 300),
        "networks": (whole(list_of(*MODULES.values())), torch_zip, 300),
        "safetensors": (safetensors_bytes(), write_bytes, 300),
        "safetensors header": (weights[1], lambda path, data: safetensors(path, data), 500),
        "export weights": (json.dumps(weights[0]).encode(), lambda path, data: export(path, data), 500),
        "bare pickle": (pickle.dumps(described["mean"]) + whole(GOOD), write_bytes, 200),
        "index": (json.dumps({"weight_map": {"w": "s.safetensors"}}).encode(), index_bytes, 200),
    }


def write_bytes(path, data):
    path.write_bytes(data)


def safetensors_bytes():
    header = json.dumps({"__metadata__": {"a": "b"}, **entry()}).encode()
    return struct.pack("<Q", len(header)) + header + FLOATS


def index_bytes(path, data):
    if path.suffix != ".json":
        path = path.with_suffix(".json")
    safetensors(path.with_name("s.safetensors"))
    path.write_bytes(data)
    return path


TARGETS = fuzz_targets()


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_bytes_changed_at_random_end_in_a_sentence_or_are_read(tmp_path, target):
    base, write, examples = TARGETS[target]
    outcomes = {"read": 0, "refused": 0}
    path = tmp_path / "m"
    path = write(path, base) or path

    @settings(
        max_examples=examples, deadline=None, database=None, derandomize=True,
        suppress_health_check=list(HealthCheck), print_blob=False,
    )  # fmt: skip
    @given(edits=EDITS)
    def fuzz(edits):
        write(path, mutated(base, edits))
        outcomes["read" if isinstance(look(path), dict) else "refused"] += 1

    fuzz()
    assert outcomes["refused"] > examples / 10  # the changes do reach what is read
    assert sorted(entry.name for entry in tmp_path.iterdir()) in (["m"], ["m.json", "s.safetensors"])


# ---- the command ----------------------------------------------------------------------------------------


def command(*arguments, cwd):
    """The command in a process of its own, with 6 GB of addresses and 60 seconds of computing: (code, stderr)."""

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30,) * 2)
        resource.setrlimit(resource.RLIMIT_CPU, (60, 60))

    root = str(Path(__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-m", "lsa_cli", *map(str, arguments)], cwd=cwd, preexec_fn=limit, timeout=300, check=False,
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    return done.returncode, done.stderr


COMMANDED = {  # whether inspect reads it: it tells what is in a file that an audit refuses
    "os.system, zip": (lambda path, runs: torch_zip(path, whole(runs["os.system"])), True),
    "beside the weights": (lambda path, runs: torch_zip(path, whole(dict_of({"model": GOOD, "x": runs["exec"]}))), True),
    "network with an activation": (lambda path, runs: torch_zip(path, whole(module_state(act=runs["partial"]))), True),
    "TorchScript": (lambda path, runs: torchscript(path, whole(module_state(act=runs["partial"]))), True),
    "laughs": (lambda path, runs: torch_zip(path, whole(BOMBS["lists of lists"][0])), False),
    "folder that leads out": (lambda path, runs: INDEXES["a link outside"](path), False),
    "pipe": (lambda path, runs: os.mkfifo(path), False),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("file", COMMANDED)
def test_the_command_ends_in_one_sentence(tmp_path, marker, file):
    make, readable = COMMANDED[file]
    path = tmp_path / "a\nb\x1b[31m.pt"
    make(path, corpus(marker)[0])
    numpy.savez(tmp_path / "data.npz", x=numpy.zeros((4, 1, 8, 8), "float32"), y=numpy.zeros(4, int))
    for arguments, codes in (
        (("inspect", path), (0,) if readable else (EXIT_USAGE,)),
        (("audit", path, "--data", f"npz:{tmp_path}/data.npz", "--eps", "0.1"), (EXIT_USAGE,)),
    ):
        code, said = command(*arguments, cwd=tmp_path)
        assert code in codes, said
        assert not marker.exists()
        if code:
            assert said.startswith("lsa: error: ")
            assert said.count("\n") == 1
            assert "bug in lsa" not in said
            assert said.rstrip("\n").isprintable()
