"""Mutated files: each is refused, or read bit by bit as torch.load(weights_only=True) reads it, and runs nothing.

LSA_FUZZ=10000 in the environment says how many files are tried; the n-th file is the same in every run.
"""

import functools
import os
import pickle
import pickletools
import random
import struct
import types
import zipfile
from collections import Counter, OrderedDict, defaultdict
from io import BytesIO

import numpy as np
import pytest
import torch
from test_agreement import ORDERED, PLACED, bits, call, filled, name, same, storage, tensor, text, tuple_of
from torch import nn

from lsa_cli.errors import LsaError
from lsa_cli.models.formats import open_contents

COUNT = int(os.environ.get("LSA_FUZZ", "1200"))
MAGIC, PROTOCOL = (pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001))


def bodies():
    """Honest contents of files."""
    torch.manual_seed(0)
    network = nn.Sequential(OrderedDict(a=nn.Linear(3, 2), b=nn.BatchNorm1d(2), d=nn.Linear(2, 2)))
    base = torch.arange(12.0).reshape(3, 4)
    marked = nn.Parameter(torch.ones(4))
    marked.tag = "x"
    mixed = {
        "state_dict": network.state_dict(), "epoch": 3, "lr": 0.5, "names": ["x", ("y", None, True)],
        "views": OrderedDict(whole=base, part=base[1:, ::2], turned=base.t(), ints=torch.arange(4), flag=torch.tensor([True, False])),
        "parameter": nn.Parameter(torch.ones(4)), "marked": marked, "size": torch.Size([2, 3]), "set": {1, "two"},
        "bytes": b"\xff\x00", "complex": torch.ones(2, dtype=torch.complex64), "device": torch.device("cpu"), 7: "seven",
    }  # fmt: skip
    return [dict(network.state_dict()), mixed, {"model": network.state_dict(), "best": np.float64(0.5)}]


def parts_of_zip(value, protocol):
    buffer = BytesIO()
    torch.save(value, buffer, pickle_protocol=protocol)
    with zipfile.ZipFile(buffer) as archive:
        return {entry: archive.read(entry) for entry in archive.namelist()}


def legacy_of(value):
    buffer = BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def legacy_cuts(data):
    """Where the five pickles of an old file end."""
    stream, cuts = BytesIO(data), []
    for _ in range(5):
        list(pickletools.genops(stream))
        cuts.append(stream.tell())
    return cuts


KEYS = ["0", "1", "2", "a.weight", "whole", "part", "model", "state_dict", "data", "real", "items", "__class__"]
NAMES = [
    "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor", "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state", "torch._tensor._rebuild_from_type_v2", "collections.OrderedDict",
    "collections.Counter", "collections.defaultdict", "torch.Size", "torch.Tensor", "torch.nn.parameter.Parameter",
    "torch.FloatStorage", "torch.DoubleStorage", "torch.LongStorage", "torch.UntypedStorage", "torch.QInt8Storage",
    "torch.device", "builtins.set", "builtins.bytearray", "_codecs.encode", "__builtin__.set", "torch.float32",
    "numpy.float64", "posix.system", "torch._utils._rebuild_sparse_tensor", "torch.FloatTensor", "builtins.complex",
]  # fmt: skip


def pieces(rng, marker):
    """A piece of a pickle: a value, a change of the value before it, or a single instruction."""
    key = rng.choice(KEYS)
    data = b"}" + text(rng.choice(["data", "grad", "tag", "real", "requires_grad"])) + tensor(key) + b"s"
    return rng.choice([
        tensor(key), storage(key, numel=rng.choice([1, 4, 12])), tuple_of(storage(key), PLACED) + b"b",
        tuple_of(storage(key), PLACED) + tuple_of() + b"\x86b", data + b"b", data, text(key), text(key) + tensor(key) + b"s",
        call("torch._utils._rebuild_parameter_with_state", tensor(key), b"\x88", ORDERED, data),
        call("torch._utils._rebuild_parameter", tensor(key), b"\x89", ORDERED),
        call("torch._tensor._rebuild_from_type_v2", name("torch._utils._rebuild_tensor_v2"), name("torch.Tensor"),
             tuple_of(storage(key), PLACED, b"\x89", ORDERED), data),
        name(rng.choice(NAMES)), name(rng.choice(NAMES)) + b")R", name(rng.choice(NAMES)) + b")\x81", ORDERED,
        call("posix.system", text(f"touch {marker}")), b"cos\nsystem\n", b"q" + bytes([rng.randrange(64)]),
        b"h" + bytes([rng.randrange(64)]), b"K" + bytes([rng.randrange(9)]), b"J" + struct.pack("<i", rng.randrange(-3, 99)),
        *[bytes([code]) for code in b"(.0125KNQRbtu}]ase)\x81\x85\x86\x87\x88\x89\x8a\x8f\x90\x93\x94"],
    ])  # fmt: skip


def changed_pickle(rng, data, marker):
    """Between one and three changes at the bounds of instructions, or at any byte."""
    for _ in range(rng.randint(1, 3)):
        try:
            places = [place for _, _, place in pickletools.genops(data)]
        except Exception:
            places = list(range(2, len(data)))
        at, to = sorted(rng.choices(places[1:] or [0], k=2))
        kind = rng.randrange(8)
        if kind == 0:
            at = rng.randrange(len(data))
            data = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        elif kind == 1:
            data = data[:at] + pieces(rng, marker) + data[at:]
        elif kind == 2:
            data = data[:at] + data[min(to, at + 40) :]
        elif kind == 3:
            data = data[:at] + data[at : at + rng.randrange(1, 60)] + data[at:]
        elif kind == 4:  # one instruction gives way to one of elsewhere
            after = places[places.index(at) + 1] if at != places[-1] else len(data)
            end = places[places.index(to) + 1] if to != places[-1] else len(data)
            data = data[:at] + data[to:end] + data[after:]
        elif kind == 5:
            one, other = rng.choice(NAMES), rng.choice(NAMES)
            data = data.replace(name(one), name(other), rng.choice([1, -1]))
        elif kind == 6:
            one, other = rng.choice(KEYS), rng.choice(KEYS)
            data = data.replace(text(one), text(other), rng.choice([1, -1]))
        else:
            data = data[: places[-1]] + pieces(rng, marker) + data[places[-1] :]
    return data


def changed_entries(rng, entries):
    """The entries of a zip file with one more, one less, or one in another case, place or size."""
    entries = list(entries.items())
    at, to = rng.randrange(len(entries)), rng.randrange(len(entries))
    entry, content = entries[at]
    kind = rng.randrange(9)
    if kind == 0:
        entries.insert(to, (entry.upper() if rng.random() < 0.5 else entry.title(), entries[to][1]))
    elif kind == 1:
        entries.insert(to, (entry, entries[to][1]))
    elif kind == 2:
        del entries[at]
    elif kind == 3:
        entries[at], entries[to] = (entry, entries[to][1]), (entries[to][0], content)
    elif kind == 4:
        entries[at] = (entry, content + bytes(rng.randrange(1, 9)))
    elif kind == 5:
        entries[at] = (entry, content[: rng.randrange(len(content) + 1)])
    elif kind == 6:
        entries[at] = (entry, rng.choice([b"big", b"little\n", b"", b"3\n", b"99\n"]))
    elif kind == 7:
        entries.append(
            (rng.choice(["other/data.pkl", "archive/.format_version", "archive/constants.pkl", "../x"]), b"1")
        )
    else:
        rng.shuffle(entries)
    return entries


def changed_bytes(rng, data, first):
    """Bytes of the file itself, behind `first`."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(min(first, len(data) - 1), len(data))
        kind = rng.randrange(5)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + 4] = struct.pack("<I", rng.choice([0, 1, 64, len(data), 2**31, 2**32 - 1]))[: len(data) - at]
        elif kind == 2:
            data[at:at] = data[max(0, at - rng.randrange(200)) : at]
        elif kind == 3:
            del data[at : at + rng.randrange(1, 30)]
        else:
            data += data[rng.randrange(len(data)) :] if rng.random() < 0.5 else bytes(rng.randrange(50))
    return bytes(data)


def zipped(entries):
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for entry, content in entries:
            archive.writestr(entry, content)
    return buffer.getvalue()


@functools.cache
def bases():
    values = bodies()
    zips = [parts_of_zip(value, protocol) for value in values for protocol in (2, 2, 4)]
    return zips, [legacy_of(value) for value in values]


def mutated(number, marker):
    rng = random.Random(number)
    zips, legacies = bases()
    if number % 4 == 3:
        data = rng.choice(legacies)
        cuts = legacy_cuts(data)
        if rng.random() < 0.3:
            return changed_bytes(rng, data, rng.choice([0, cuts[2], cuts[3], cuts[4]]))
        which = rng.choice([0, 1, 2, 3, 3, 3, 3, 4])
        start = cuts[which - 1] if which else 0
        return data[:start] + changed_pickle(rng, data[start : cuts[which]], marker) + data[cuts[which] :]
    entries = rng.choice(zips)
    if number % 4 == 2:
        if rng.random() < 0.4:
            return zipped(changed_entries(rng, entries))
        data = zipped(entries.items())
        return changed_bytes(rng, data, data.index(b"PK\1\2") if rng.random() < 0.7 else 0)
    return zipped(
        (entry, changed_pickle(rng, content, marker) if entry.endswith("data.pkl") else content)
        for entry, content in entries.items()
    )


# ---- what a real unpickling finds, with nothing imported ---------------------------------------------------


class Foreign:
    """In place of every class and function that no weights need."""

    def __new__(cls, *arguments, **keywords):
        return super().__new__(cls)

    def __init__(self, *arguments, **keywords):
        pass

    def __setstate__(self, state):
        pass

    def append(self, item):
        pass

    def extend(self, items):
        pass

    def __setitem__(self, key, value):
        pass


REAL = {
    f"{function.__module__}.{function.__qualname__}": function
    for function in (OrderedDict, Counter, set, frozenset, bytearray, torch.device,
                     torch._utils._rebuild_tensor, torch._utils._rebuild_tensor_v2, torch._utils._rebuild_tensor_v3,
                     torch._utils._rebuild_parameter, torch._utils._rebuild_parameter_with_state, torch.nn.Parameter,
                     torch._tensor._rebuild_from_type_v2)
} | {"torch.Size": torch.Size, "torch.Tensor": torch.Tensor, "collections.defaultdict": defaultdict}  # fmt: skip


class Unpickler(pickle.Unpickler):
    def find_class(self, module, attribute):
        return REAL.get(f"{module}.{attribute}", Foreign)


STUB = types.SimpleNamespace(
    __name__="stub", Unpickler=Unpickler, load=lambda file, **keywords: Unpickler(file, **keywords).load()
)


def tensors(value, place=()):
    """Every tensor in dictionaries and lists by its place: the keys, or their numbers where they are no text."""
    if isinstance(value, torch.Tensor):
        yield place, bits(value)
    elif isinstance(value, dict):
        for number, (key, item) in enumerate(value.items()):
            is_plain = isinstance(key, (str, int)) and not str(key).startswith("<")
            yield from tensors(item, (*place, key if is_plain else number))
    elif isinstance(value, (list, tuple)):
        for key, item in enumerate(value):
            yield from tensors(item, (*place, key))


def outcome(path):
    """refused; same: as torch reads it; alone: torch refuses what it imports or an instruction of it, and it is read as a
    real unpickling would read it, if one can."""
    try:
        contents = open_contents(path)
        if contents.format not in ("torch-zip", "torch-legacy"):
            return "refused"
        contents.compare()
        found = filled(contents.load, contents.root)
    except LsaError:
        return "refused"
    try:
        expected = torch.load(path, weights_only=True, map_location="cpu", mmap=False)
    except pickle.UnpicklingError:
        try:
            real = torch.load(path, weights_only=False, map_location="cpu", mmap=False, pickle_module=STUB)
        except Exception:
            return "unreadable"
        assert dict(tensors(found)) == dict(tensors(real))
        return "alone"
    assert same(found, expected)
    return "same"


@pytest.mark.filterwarnings("ignore")
def test_a_mutated_file_is_refused_or_read_as_torch_reads_it(tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "m.pt"
    outcomes = Counter()
    for number in range(COUNT):
        path.write_bytes(mutated(number, marker))
        try:
            outcomes[outcome(path)] += 1
        except Exception as error:
            raise AssertionError(f"file {number}") from error
        assert not marker.exists(), number
    assert min(outcomes["refused"], outcomes["same"], outcomes["alone"]) > COUNT / 100  # the changes reach all of them
