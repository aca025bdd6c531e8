"""A pickle as symbols: what it says is what a real unpickling would build, and nothing of it is done."""

import collections
import pickle
import sys
import zipfile
from io import BytesIO

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lsa_cli.errors import CheckpointError
from lsa_cli.models.pickles.machine import read_symbols
from lsa_cli.models.pickles.modules import is_module, tensors_of
from lsa_cli.models.pickles.symbols import Call, CutShort, Global, Members, StorageSpec, TensorSpec, shown

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(-(2**40), 2**40), inner)
    ),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(PLAIN, st.integers(0, 5))
def test_plain_values_are_themselves_in_every_protocol(value, protocol):
    symbols = read_symbols(pickle.dumps(value, protocol), "x")
    if protocol > 2:  # older ones have no bytes, and call codecs.encode for them
        assert (symbols.root, symbols.globals) == (value, ())
    elif not symbols.globals:
        assert symbols.root == value


@pytest.mark.parametrize("protocol", range(6))
def test_references_to_one_object_stay_one_object(protocol):
    shared = [1.5]
    value = {"a": shared, "b": (shared, shared)}
    root = read_symbols(pickle.dumps(value, protocol), "x").root
    assert root["a"] is root["b"][0] is root["b"][1]
    looped: list = []
    looped.append(looped)
    root = read_symbols(pickle.dumps(looped, protocol), "x").root
    assert root[0] is root


@pytest.mark.parametrize("protocol", range(6))
def test_dictionaries_of_the_standard_library_are_dictionaries(protocol):
    default = collections.defaultdict(list, {"x": [1]})
    value = [collections.OrderedDict(a=1, b=2), default, collections.Counter("aab")]
    assert read_symbols(pickle.dumps(value, protocol), "x").root == [{"a": 1, "b": 2}, {"x": [1]}, {"a": 2, "b": 1}]


@pytest.mark.parametrize("protocol", range(6))
def test_sets_are_their_members(protocol):
    for value in ({1, 2, 3}, frozenset("ab")):
        root = read_symbols(pickle.dumps(value, protocol), "x").root
        assert isinstance(root, Members)
        assert set(root.items) == value


class Point:
    def __init__(self):
        self.x, self.y = 1, [2]


@pytest.mark.parametrize("protocol", range(6))
def test_an_object_is_the_call_that_would_make_it_and_its_state(protocol):
    symbols = read_symbols(pickle.dumps(Point(), protocol), "x")
    assert isinstance(symbols.root, Call)
    assert symbols.root.state == {"x": 1, "y": [2]}
    assert f"{__name__}.Point" in symbols.globals


def test_nothing_is_imported():
    for module in ("this", "antigravity", "no.such.module"):
        sys.modules.pop(module, None)
        symbols = read_symbols(b"\x80\x02c" + module.encode() + b"\nname\n)R.", "x")
        assert symbols.globals == (f"{module}.name",)
        assert str(symbols.root.function) == symbols.root.class_name == f"{module}.name"
        assert module not in sys.modules


def test_every_name_is_listed_once_in_its_order_wherever_it_stands():
    data = b"\x80\x02cb\ny\n0ca\nx\ncb\ny\n)R\x85R."
    assert read_symbols(data, "x").globals == ("b.y", "a.x")


def test_a_pickle_ends_where_it_says_and_what_follows_is_not_read():
    data = pickle.dumps({"a": 1})
    assert read_symbols(data + b"\xff garbage", "x").end == len(data)


def test_a_pickle_cut_short_is_told_from_one_that_is_damaged():
    data = pickle.dumps({"a": list(range(300)), "b": "text" * 20})
    for length in range(len(data)):
        with pytest.raises(CutShort):
            read_symbols(data[:length], "x")
    with pytest.raises(CheckpointError) as caught:
        read_symbols(b"\x80\x02}\xff" + data, "x")
    assert not isinstance(caught.value, CutShort)


def data_of(value, **options):
    """The data.pkl of what torch.save writes."""
    buffer = BytesIO()
    torch.save(value, buffer, **options)
    with zipfile.ZipFile(buffer) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("/data.pkl")))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_tensor_is_the_bytes_that_it_covers(protocol):
    base = torch.arange(24, dtype=torch.int16).reshape(4, 6)
    symbols = read_symbols(data_of([base, base[1:3, ::2], base.t()], pickle_protocol=protocol), "x")
    whole, part, turned = symbols.root
    assert whole == TensorSpec(StorageSpec("0", "int16", 24), "int16", (4, 6), (6, 1), 0)
    assert (part.shape, part.stride, part.offset, part.numel, part.nbytes) == ((2, 3), (6, 2), 6, 6, 12)
    assert part.covered == (12, 34)
    assert (turned.shape, turned.stride, turned.end, turned.covered) == ((6, 4), (1, 6), 24, (0, 48))
    assert symbols.storages == {"0": "int16"}


def test_a_parameter_is_its_tensor():
    root = read_symbols(data_of({"w": nn.Parameter(torch.ones(3))}), "x").root
    assert root["w"].shape == (3,)


def test_arrays_of_numpy_are_calls_and_no_tensors():
    root = read_symbols(pickle.dumps({"w": np.ones(3)}), "x").root
    assert isinstance(root["w"], Call)
    assert root["w"].class_name.startswith("numpy.")


def test_tensors_pickled_without_torch_save_are_calls_and_no_tensors():
    symbols = read_symbols(pickle.dumps({"w": torch.ones(3)}), "x")
    assert isinstance(symbols.root["w"], Call)
    assert "torch.storage._load_from_bytes" in symbols.globals


def test_numbers_that_torch_would_conjugate_on_reading_are_refused_and_not_read_wrongly():
    value = torch.tensor([1 + 2j, 3j])
    assert read_symbols(data_of(value.conj().resolve_conj()), "x").root.dtype == "complex64"
    with pytest.raises(CheckpointError, match="conjugated or negated only when it is read"):
        read_symbols(data_of(value.conj()), "x")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.register_buffer("mask", torch.ones(2), persistent=False)
        self.register_buffer("kept", torch.ones(2))
        self.register_buffer("absent", None)
        self.scale = nn.Parameter(torch.ones(1))
        self.plain = torch.ones(7)
        self.extra = {"a": 1}


def networks():
    tied = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    tied[2].weight = tied[0].weight
    twice = nn.Sequential(nn.Linear(2, 2))
    twice.append(twice[0])
    return {
        "blocks": nn.Sequential(Block(), nn.ModuleDict({"a": Block(), "b": nn.Identity()}), nn.ModuleList([Block()])),
        "recurrent": nn.LSTM(3, 4, num_layers=2, bidirectional=True),
        "attention": nn.TransformerEncoderLayer(8, 2, 16),
        "tied": tied,
        "twice": twice,
        "lists of parameters": nn.ParameterList([torch.ones(2), torch.ones(3)]),
        "nothing": nn.ReLU(),
    }


@pytest.mark.parametrize("name", networks())
def test_the_tensors_of_a_pickled_network_are_those_of_its_state_dict(name):
    network = networks()[name]
    root = read_symbols(data_of(network), "x").root
    assert is_module(root)
    expected = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    assert {key: spec.shape for key, spec in tensors_of(root).items()} == expected


def test_what_holds_no_network_is_none():
    for value in ({"a": 1}, [1], Point(), None, "x"):
        root = read_symbols(pickle.dumps(value), "x").root
        assert not is_module(root)
        assert tensors_of(root) == {}


def test_values_of_a_file_are_shown_short_and_on_one_line():
    texts = {
        "a\nb": "'a\\nb'", "\ud800": "'\\ud800'", "x" * 100: "'" + "x" * 60 + "...'", 7: "7", 10**5000: "int",
        Global("os\n", "system"): "'os\\n.system'", None: "NoneType",
    }  # fmt: skip
    assert {value: shown(value) for value in texts} == texts
    assert shown([[]] * 10**6) == "list"
