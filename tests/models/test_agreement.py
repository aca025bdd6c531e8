"""What is audited is what torch.load reads: a file that two readers read differently is refused, whatever the trick."""

import json
import struct
import types
import zipfile
from collections import OrderedDict
from io import BytesIO

import pytest
import torch
from torch import nn

from lsa_cli.errors import CheckpointError
from lsa_cli.models.checkpoint import read_checkpoint
from lsa_cli.models.formats import open_contents
from lsa_cli.models.loading import load_network
from lsa_cli.models.pickles.machine import read_symbols
from lsa_cli.models.pickles.symbols import TensorSpec

TRUE, FALSE = struct.pack("<4f", 1, 2, 3, 4), struct.pack("<4f", 5, 6, 7, 8)  # what torch reads, and what it does not


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def name(full):
    module, _, attribute = full.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def tuple_of(*parts):
    return b"(" + b"".join(parts) + b"t"


def call(function, *arguments):
    return name(function) + tuple_of(*arguments) + b"R"


def storage(key, kind="torch.FloatStorage", numel=4):
    return tuple_of(text("storage"), name(kind), text(key), text("cpu"), b"K" + bytes([numel])) + b"Q"


PLACED = b"K\x00K\x04\x85K\x01\x85"  # offset, shape, strides
ORDERED = call("collections.OrderedDict")


def tensor(key):
    return call("torch._utils._rebuild_tensor_v2", storage(key), PLACED, b"\x89", ORDERED)


def data_of(key):
    return b"}" + text("data") + tensor(key) + b"s"


def weights(value):
    return b"}" + text("w") + value + b"s"


def write(path, *pickles, more=(), start=b"\x80\x02"):
    """A zip file as torch.save writes it, with what torch reads under 0 and what it does not under 1."""
    with zipfile.ZipFile(path, "w") as archive:
        for place, body in pickles:
            archive.writestr(place, start + body + b".")
        for place, content in (
            ("a/byteorder", b"little"),
            ("a/version", b"3\n"),
            ("a/data/0", TRUE),
            ("a/data/1", FALSE),
        ):
            archive.writestr(place, content)
        for place, content in more:
            archive.writestr(place, content)
    return path


def one(body):
    return lambda path: write(path, ("a/data.pkl", body))


def part_that_is_a_folder(path):
    """An entry with numbers that the list of entries calls a folder: torch reads nothing, and returns memory as it is."""
    write(path, ("a/data.pkl", weights(tensor("0"))))
    content = bytearray(path.read_bytes())
    content[content.rindex(b"a/data/0") - 8] |= 0x10
    path.write_bytes(content)


def two_lists(path):
    """Two lists of entries: the one before the end record, and the one that it points to once what stands before it is taken off."""
    real, other = BytesIO(), BytesIO()
    write(real, ("a/data.pkl", weights(tensor("0"))))
    write(other, ("a/data.pkl", weights(tensor("1"))))
    path.write_bytes(other.getvalue()[:-22] + real.getvalue())


REBUILT = tuple_of(storage("1"), PLACED, b"\x89", ORDERED)
STATED = name("torch._utils._rebuild_tensor_v2") + name("torch.Tensor") + REBUILT
TRICKS = {
    "state of a tensor": one(weights(tensor("1") + tuple_of(storage("0"), PLACED) + b"b")),
    "state of a parameter": one(
        weights(call("torch._utils._rebuild_parameter_with_state", tensor("1"), b"\x88", ORDERED, data_of("0")))
    ),
    "state of a parameter, in slots": one(
        weights(
            call("torch._utils._rebuild_parameter_with_state", tensor("1"), b"\x88", ORDERED, b"N" + data_of("0") + b"\x86")
        )
    ),
    "state of a type": one(weights(call("torch._tensor._rebuild_from_type_v2", STATED, data_of("0")))),
    "real part of a tensor": one(
        weights(
            call("torch._tensor._rebuild_from_type_v2", STATED, b"}" + text("real") + tensor("0") + b"s")
        )
    ),
    "upper and lower case": lambda path: write(
        path, ("a/DATA.PKL", weights(tensor("0"))), ("a/data.pkl", weights(tensor("1")))
    ),
    "upper and lower case of the folder": lambda path: write(
        path, ("a/data.pkl", weights(tensor("0"))), ("A/data.pkl", weights(tensor("1")))
    ),
    "upper and lower case of numbers": lambda path: write(
        path, ("a/data.pkl", weights(tensor("x"))), more=(("a/data/X", TRUE), ("a/data/x", FALSE))
    ),
    "two lists of entries": two_lists,
    "an entry that is a folder": part_that_is_a_folder,
    "functions of a dictionary": one(
        ORDERED + text("w") + tensor("1") + b"s}" + text("items") + name("torch.Size") + b"sb"
    ),
    "one part of two sizes": one(
        weights(call("torch._utils._rebuild_tensor_v2", storage("1", numel=2), b"K\x00K\x02\x85K\x01\x85", b"\x89", ORDERED))
        + text("v") + tensor("1") + b"s"
    ),
}  # fmt: skip
AGREED = {  # odd, and read by every reader in one way
    "a class made without its content": one(
        name("collections.OrderedDict") + tuple_of(b"](" + text("v") + tensor("1") + b"\x86e") + b"\x81"
        + text("w") + tensor("0") + b"s"
    ),
    "a key twice": one(weights(tensor("1")) + text("w") + tensor("0") + b"s"),
    "a list of pairs that grows later": one(
        b"}" + text("list") + b"](" + text("w") + tensor("0") + b"\x86eq\x00s" + text("ordered")
        + name("collections.OrderedDict") + b"h\x00\x85Rs" + text("again") + b"h\x00" + text("w") + tensor("1") + b"\x86as"
        + text("w") + tensor("0") + b"s"
    ),
    "two dictionaries of one list": one(
        b"}" + text("list") + b"](" + text("w") + tensor("0") + b"\x86eq\x00s"
        + text("first") + name("collections.OrderedDict") + b"h\x00\x85Rs"
        + text("second") + name("collections.OrderedDict") + b"h\x00\x85R" + text("w") + tensor("1") + b"ss"
        + text("w") + tensor("0") + b"s"
    ),
    "what follows the end": one(weights(tensor("0")) + b"." + weights(tensor("1"))),
    "an attribute of a parameter": one(
        weights(call("torch._utils._rebuild_parameter_with_state", tensor("0"), b"\x88", ORDERED, b"}" + text("tag") + b"K\x01s"))
    ),
    "a number of the memo given twice": one(
        b"}" + text("v") + tensor("1") + b"q\x05s" + text("u") + tensor("0") + b"q\x05s" + text("w") + b"h\x05s"
    ),
}  # fmt: skip


def read(path):
    contents = open_contents(path)
    return filled(contents.load, contents.root)


def filled(load, value):
    """The symbols with their tensors read."""
    if isinstance(value, TensorSpec):
        return load(value)
    if isinstance(value, dict):
        return {key: filled(load, item) for key, item in value.items()}
    return [filled(load, item) for item in value] if isinstance(value, (list, tuple)) else value


def same(found, expected):
    """The same keys, types, shapes and bits; what is no tensor, number or text may be a symbol."""
    if isinstance(expected, torch.Tensor):
        return isinstance(found, torch.Tensor) and bits(found) == bits(expected)
    if isinstance(expected, dict):
        return len(found) == len(expected) and all(
            (key == other or is_symbol(key, other)) and same(found[key], expected[other])
            for key, other in zip(found, expected, strict=True)
        )
    if isinstance(expected, (list, tuple)):
        return len(found) == len(expected) and all(map(same, found, expected))
    if isinstance(expected, (int, float, str, bytes, type(None))):
        return type(found) is type(expected) and (found == expected or (found != found and expected != expected))
    return not isinstance(found, (torch.Tensor, dict, list))


def is_symbol(key, value):
    """Whether a key stands for a value that is no text and no number."""
    return str(key).startswith("<") and not isinstance(value, (int, float, str, bytes, type(None)))


def bits(tensor):
    tensor = tensor.detach().contiguous()
    return tensor.dtype, tensor.shape, tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("trick", TRICKS)
@pytest.mark.filterwarnings("ignore")
def test_a_file_that_readers_read_differently_is_refused_by_that_name(tmp_path, trick):
    path = tmp_path / "m.pt"
    TRICKS[trick](path)
    with pytest.raises(
        CheckpointError, match=r"reads differently in different readers .*; save it again with torch.save"
    ):
        read(path)


@pytest.mark.parametrize("trick", ["state of a tensor", "state of a parameter", "state of a type"])
def test_the_tricks_do_mislead_a_reader_that_takes_the_numbers_it_meets_first(tmp_path, trick):
    """Else the test above would prove nothing."""
    path = tmp_path / "m.pt"
    TRICKS[trick](path)
    assert torch.load(path, weights_only=True)["w"].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("oddity", AGREED)
def test_what_is_odd_is_read_as_torch_reads_it(tmp_path, oddity):
    path = tmp_path / "m.pt"
    AGREED[oddity](path)
    expected = torch.load(path, weights_only=True)
    assert expected["w"].tolist() == [1, 2, 3, 4]
    assert same(read(path), expected)


def test_every_function_that_torch_trusts_is_understood_or_refused(tmp_path):
    """One that torch calls and lsa takes for a symbol could make any tensor, or take any memory."""
    from torch._weights_only_unpickler import _get_allowed_globals

    harmless = {
        "torch.device",
        "torch.serialization._get_layout",
        "builtins.complex",
        "collections.OrderedDict",
        "collections.Counter",
    }
    functions = {full for full, value in _get_allowed_globals().items() if callable(value)} - harmless
    assert len(functions) > 50
    for full in functions:
        for body in (call(full, b"\x8a\x06" + bytes(5) + b"\x01"), name(full) + b"K\x01\x85\x81"):  # called with 2**40
            if full == "builtins.set" and body.endswith(b"\x81"):
                continue  # an empty one: what makes an object does not fill it
            with pytest.raises(CheckpointError):
                read_symbols(b"\x80\x02" + body + b".", "x")


def test_every_attribute_that_is_part_of_a_tensor_is_refused_as_a_state():
    for kind in nn.Parameter.__mro__:
        for attribute, value in vars(kind).items():
            if isinstance(value, (types.GetSetDescriptorType, property)) and not attribute.startswith(
                ("is_", "__", "_has")
            ):
                try:
                    setattr(torch.ones(2), attribute, torch.zeros(2))
                except (AttributeError, RuntimeError, TypeError):
                    continue
                state = b"}" + text(attribute) + tensor("0") + b"s"
                body = call("torch._utils._rebuild_parameter_with_state", tensor("1"), b"\x88", ORDERED, state)
                with pytest.raises(CheckpointError, match="reads differently"):
                    read_symbols(b"\x80\x02" + body + b".", "x")


class Trusted:
    def __init__(self):
        raise AssertionError("a class of the file was called")


def test_what_the_environment_told_torch_to_trust_is_not_trusted(tmp_path):
    path = write(
        tmp_path / "m.pt", ("a/data.pkl", weights(tensor("0")) + text("x") + call(f"{__name__}.Trusted") + b"s")
    )
    with torch.serialization.safe_globals([Trusted]):
        with pytest.raises(AssertionError, match="was called"):
            torch.load(path, weights_only=True)
        assert read(path)["w"].tolist() == [1, 2, 3, 4]
        assert torch.serialization.get_safe_globals().count(Trusted) == 1


def test_a_file_that_torch_refuses_is_read_with_a_word_about_it(tmp_path):
    body = nn.Linear(2, 2)
    path = tmp_path / "m.pt"
    torch.save({"state_dict": body.state_dict(), "best": OrderedDict}, path)
    (tmp_path / "net.py").write_text("from torch import nn\ndef net():\n    return nn.Linear(2, 2)\n")
    assert not any(
        "torch.load" in note for note in load_network(read_checkpoint(path), f"{tmp_path}/net.py:net", {}).notes
    )
    torch.save({"state_dict": body.state_dict(), "best": Trusted}, path)
    notes = load_network(read_checkpoint(path), f"{tmp_path}/net.py:net", {}).notes
    assert any(
        note.startswith("torch.load(weights_only=True) refuses this file") and "Trusted" in note for note in notes
    )


@pytest.mark.filterwarnings("ignore")
def test_quantised_networks_that_were_pickled_whole_are_named_with_the_way_out(tmp_path):
    network = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 4)), {nn.Linear}, dtype=torch.qint8)
    for zipped in (True, False):
        torch.save(network, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
        with pytest.raises(CheckpointError, match=r"quantised network.*give the float checkpoint from before"):
            open_contents(tmp_path / "m.pt")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("zipped", [True, False])
def test_sparse_and_quantised_tensors_are_the_numbers_that_torch_loads(tmp_path, zipped):
    torch.manual_seed(0)
    plain = torch.randint(-2, 3, (4, 6)).float()
    values = {
        "coo": plain.to_sparse(), "hybrid": torch.rand(4, 6, 2).to_sparse(2), "csr": nn.Parameter(plain.to_sparse_csr()),
        "csc": plain.to_sparse_csc(), "bsr": plain.to_sparse_bsr((2, 3)), "bsc": plain.to_sparse_bsc((2, 3)),
        "channels": torch.quantize_per_channel(plain, torch.rand(6) + 0.1, torch.arange(6), 1, torch.quint8),
        "tensor": torch.quantize_per_tensor(plain.t(), 0.1, 3, torch.qint32),
    }  # fmt: skip
    torch.save(values, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    contents = open_contents(tmp_path / "m.pt")
    for name, value in values.items():
        found, value = contents.load(contents.root[name]), value.detach()
        assert torch.equal(found, value.dequantize() if value.is_quantized else value.to_dense())


def test_numbers_that_are_quantised_by_float_zero_points_are_refused(tmp_path):
    value = torch.quantize_per_channel(torch.rand(2, 2), torch.ones(2), torch.zeros(2), 0, torch.qint8)
    torch.save({"w": value}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"quantised by .*which lsa does not read; save floats"):
        open_contents(tmp_path / "m.pt")


def test_a_key_that_stands_twice_in_a_header_is_refused(tmp_path):
    entry = json.dumps({"dtype": "F32", "shape": [4], "data_offsets": [0, 16]})
    header = f'{{"w": {entry}, "w": {entry}}}'.encode()
    (tmp_path / "m").write_bytes(struct.pack("<Q", len(header)) + header + TRUE)
    with pytest.raises(CheckpointError, match="has the key 'w' twice"):
        open_contents(tmp_path / "m")
