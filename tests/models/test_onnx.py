"""ONNX graphs: read node by node they are the networks that they were exported from, layers and gradients included."""

import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import lsa_cli
from lsa_cli.errors import CheckpointError
from lsa_cli.models.checkpoint import read_checkpoint
from lsa_cli.models.graphs import network_of
from lsa_cli.models.graphs.layers import LAYERS
from lsa_cli.models.loading import load_network

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402


class Block(nn.Module):
    """A residual block with a gate, whose parts exporters write as several nodes."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.silu, self.gelu = (
            nn.Conv2d(4, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.SiLU(),
            nn.GELU(),
        )
        self.linear = nn.Linear(6, 6)

    def forward(self, x):
        x = x + self.silu(self.norm(self.conv(x)))
        return self.gelu(self.linear(x)).clamp(-1, 6) * x.mean((2, 3), keepdim=True)


def small_network():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), nn.ELU(), nn.MaxPool2d(2, 1), Block(), nn.AvgPool2d(2), nn.LayerNorm(3), nn.Flatten(),
        nn.Linear(36, 5),
    )  # fmt: skip
    for tensor in network[3].norm.buffers():
        tensor.copy_(torch.rand(tensor.shape) + 0.5 if tensor.is_floating_point() else tensor)
    return network.eval()


def export(network, path, x, dynamic=True, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter that needs no further package
        axes = {"x": {0: "n"}} if dynamic else None
        torch.onnx.export(network, (x,), path, dynamo=False, input_names=["x"], dynamic_axes=axes, **options)
    return path


@pytest.mark.parametrize("opset", [11, 17, 20])
@pytest.mark.parametrize("dynamic", [True, False])
def test_an_exported_network_has_the_outputs_gradients_and_layers_of_the_original(tmp_path, opset, dynamic):
    network, x = small_network(), torch.rand(3, 3, 16, 16)
    path = export(network, tmp_path / "net.onnx", x[:1], dynamic, opset_version=opset)
    read = load_network(read_checkpoint(path), None, {})
    assert read.shows_layers
    outputs, gradients = [], []
    for body in (network, read.body):
        images = x.clone().requires_grad_(True)
        outputs.append(body(images))
        gradients.append(torch.autograd.grad(outputs[-1].square().sum(), images)[0])
    for ours, theirs in (reversed(outputs), reversed(gradients)):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    kinds = {name: type(module).__name__ for name, module in read.body.named_modules() if type(module) is not nn.Module}
    wanted = {"0": "Conv2d", "3.conv": "Conv2d", "3.linear": "Linear", "7": "Linear", "1": "ELU", "3.gelu": "GELU"}
    assert {name: kinds.get(name) for name in wanted} == wanted or opset < 17
    assert sorted(kinds.values()).count("SiLU") == sorted(kinds.values()).count("GELU") == 1


def test_an_audit_of_the_exported_network_is_that_of_the_checkpoint(tmp_path, samples):
    """Robust within one sample, as folded and rounded differently."""
    body = load_network(read_checkpoint(samples / "mnist_cnn.pt"), None, {}).body.eval()
    path = export(body, tmp_path / "mnist.onnx", torch.zeros(1, 1, 28, 28), dynamic=False)
    common = {"data": f"npz:{samples / 'mnist.npz'}", "n": 40, "eps": 0.1, "quick": True}
    ours, theirs = (lsa_cli.audit(file, normalize="mnist", **common) for file in (path, samples / "mnist_cnn.pt"))
    for one, other in zip(ours.outcomes, theirs.outcomes, strict=True):
        assert abs(one.robust.value - other.robust.value) <= 1 / 40
        for row, wanted in zip(one.layers.rows, other.layers.rows, strict=True):
            assert (row.name, row.mean) == (wanted.name, pytest.approx(wanted.mean, abs=0.01))


# ---- operators: each graph is read only if onnxruntime computes the same -------------------------------------


def save(path, nodes, weights=(), shape=(None, 3, 8, 8), opset=17, outputs=("y",), **options):
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in dict(weights).items()]
    taken = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(
        [helper.make_node(*node[:3], **node[3]) for node in nodes], "g", taken, given, initializers
    )
    versions = [helper.make_opsetid("", opset), helper.make_opsetid("com.example", 1)]
    model = helper.make_model(graph, opset_imports=versions, ir_version=8)
    onnx.save(model, path, **options)
    return path


W, B = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32), np.ones(4, dtype=np.float32)
INTS = np.int64
# fmt: off
GRAPHS = {
    "same padding": [("Conv", ["x", "w", "b"], ["y"], {"auto_pad": "SAME_UPPER", "strides": [2, 2]})],
    "unequal padding": [("Conv", ["x", "w"], ["y"], {"pads": [0, 1, 2, 1]})],
    "pools": [("MaxPool", ["x"], ["p"], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 1, 1]}),
              ("AveragePool", ["p"], ["y"], {"kernel_shape": [2, 2], "ceil_mode": 1})],
    "norms before a convolution": [("BatchNormalization", ["x", "three", "three", "three", "three"], ["n"], {}),
                                   ("InstanceNormalization", ["n", "three", "three"], ["i"], {}), ("Conv", ["i", "w"], ["y"], {})],
    "old softmax": [("Softmax", ["x"], ["y"], {"axis": 1})],
    "hard sigmoid of Keras": [("HardSigmoid", ["x"], ["y"], {})],
    "shapes": [("Shape", ["x"], ["s"], {}), ("Gather", ["s", "zero"], ["n"], {}), ("Unsqueeze", ["n", "axis"], ["m"], {}),
               ("Concat", ["m", "minus"], ["t"], {"axis": 0}), ("Reshape", ["x", "t"], ["y"], {})],
    "parts": [("Split", ["x"], ["a", "b1", "c"], {"axis": 1}), ("Slice", ["a", "two", "minus", "axes", "two"], ["d"], {}),
              ("Sub", ["b1", "c"], ["e"], {}), ("Pow", ["e", "square"], ["f"], {}), ("ReduceMean", ["f"], ["g"], {"axes": [2, 3]}),
              ("Mul", ["g", "d"], ["y"], {})],
    "reflected": [("Pad", ["x", "pads"], ["y"], {"mode": "reflect"})],
    "resize": [("Resize", ["x", "", "scales"], ["y"], {"mode": "linear"})],
    "gemm without a layer": [("Flatten", ["x"], ["f"], {}), ("Gemm", ["f", "f"], ["y"], {"transB": 1, "alpha": 0.5})],
}
WEIGHTS = {
    "w": W, "b": B, "three": np.asarray([0.5, 1, 2], np.float32), "zero": np.asarray(0, INTS), "axis": np.asarray([0], INTS), "minus": np.asarray([-1], INTS),
    "two": np.asarray([2], INTS), "axes": np.asarray([3], INTS), "square": np.asarray(2, np.float32),
    "pads": np.asarray([0, 0, 1, 2, 0, 0, 3, 0], INTS), "scales": np.asarray([1, 1, 2, 1.5], np.float32),
}
# fmt: on


@pytest.mark.parametrize("name", GRAPHS)
def test_operators_compute_what_onnxruntime_computes(tmp_path, name):
    used = {key: value for key, value in WEIGHTS.items() if any(key in node[1] for node in GRAPHS[name])}
    used = used or {"w": W}
    path = save(tmp_path / "g.onnx", GRAPHS[name], used, opset=11 if name == "old softmax" else 17)
    opened = network_of(read_checkpoint(path))
    x = torch.rand(2, 3, 8, 8, requires_grad=True)
    opened.network(x).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_a_wrong_operator_is_found(tmp_path, monkeypatch):
    path = save(tmp_path / "g.onnx", [("Relu", ["x"], ["y"], {})], {"w": W})
    network_of(read_checkpoint(path))
    monkeypatch.setitem(LAYERS, "Relu", lambda node, values: nn.ELU())
    with pytest.raises(CheckpointError, match=r"what onnxruntime computes differ by 0\.\d+ of the largest output"):
        network_of(read_checkpoint(path))


# ---- batches and layouts --------------------------------------------------------------------------------------


def test_a_batch_that_is_not_first_stays_and_is_obeyed(tmp_path):
    nodes = [
        ("Transpose", ["x"], ["t"], {"perm": [1, 0, 2, 3]}), ("Reshape", ["t", "s"], ["r"], {}),
        ("Transpose", ["r"], ["u"], {"perm": [1, 0]}), ("Reshape", ["u", "e"], ["v"], {}), ("ReduceMean", ["v"], ["y"], {"axes": [2]}),
    ]  # fmt: skip
    weights = {"s": np.asarray([3, 128], INTS), "e": np.asarray([2, 64, 3], INTS)}
    path = save(tmp_path / "g.onnx", nodes, weights, (2, 3, 8, 8))
    opened = load_network(read_checkpoint(path), None, {})
    assert not opened.shows_layers
    assert any("takes 2 images at a time; it is given so many" in note for note in opened.notes)
    x = torch.rand(5, 3, 8, 8)
    torch.testing.assert_close(opened.body(x), x.mean(1).flatten(1)[..., None])


def test_channels_that_stand_last_and_vectors(tmp_path):
    path = save(tmp_path / "g.onnx", [("Mul", ["x", "b"], ["y"], {})], {"b": np.ones(3, np.float32)}, (None, 8, 6, 3))
    opened = network_of(read_checkpoint(path))
    x = torch.rand(2, 3, 8, 6)
    assert opened.shape == (3, 8, 6)
    assert torch.equal(opened.network(x), x.permute(0, 2, 3, 1))
    path = save(tmp_path / "v.onnx", [("Mul", ["x", "b"], ["y"], {})], {"b": np.ones(192, np.float32)}, (None, 192))
    assert torch.equal(network_of(read_checkpoint(path)).network(torch.ones(2, 3, 8, 8)), torch.ones(2, 192))


# ---- what is refused, in one sentence ------------------------------------------------------------------------


def refusal(path):
    with pytest.raises(CheckpointError) as caught:
        load_network(read_checkpoint(path), None, {})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_operators_that_are_not_read_are_named(tmp_path):
    path = tmp_path / "g.onnx"
    assert "does not read the operator Det (node '')" in refusal(save(path, [("Det", ["x"], ["y"], {})], {"w": W}))
    own = [("Own", ["x"], ["y"], {"domain": "com.example"})]
    assert "the operator com.example.Own" in refusal(save(path, own, {"w": W}))
    rounded = [("QuantizeLinear", ["x", "scale", "zero8"], ["y"], {})]
    weights = {"scale": np.asarray(0.1, np.float32), "zero8": np.asarray(0, np.uint8)}
    assert "quantised network, through which no gradient flows" in refusal(save(path, rounded, weights))


def test_numbers_outside_of_the_folder_are_refused(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(W.nbytes))
    (tmp_path / "sub").mkdir()
    path = tmp_path / "sub" / "g.onnx"
    node = [("Conv", ["x", "w"], ["y"], {})]
    save(path, node, {"w": W}, save_as_external_data=True, location="beside.bin", size_threshold=0)
    assert network_of(read_checkpoint(path)).network(torch.ones(1, 3, 8, 8)).shape == (1, 4, 6, 6)
    model = onnx.load(path, load_external_data=False)
    for location in ("../secret", str(tmp_path / "secret"), "", "link"):
        model.graph.initializer[0].external_data[0].value = location
        path.write_bytes(model.SerializeToString())
        if location == "link":
            (tmp_path / "sub" / "link").symlink_to(tmp_path / "secret")
        assert "not a plain file beside it; refused" in refusal(path)
    model.graph.initializer[0].external_data[0].value = "gone.bin"
    path.write_bytes(model.SerializeToString())
    assert "gone.bin, which is absent; put the file beside the model" in refusal(path)


def test_a_graph_with_odd_nodes_is_refused(tmp_path):
    path = tmp_path / "g.onnx"
    for node in (
        ("MaxPool", ["x"], ["y"], {"kernel_shape": 3.0}), ("Mul", [], ["y"], {}), ("Conv", ["x"], ["y"], {}), ("Relu", ["z"], ["y"], {}),
        ("Relu", ["x"], [], {}), ("Reshape", ["x", "x"], ["y"], {}), ("Expand", ["x", "big"], ["y"], {}), ("Slice", ["x"], ["y"], {}),
    ):  # fmt: skip
        refusal(save(path, [node], {"w": W, "big": np.asarray([2**40, 1, 1, 1], INTS)}))


def test_damaged_files_and_absent_packages(tmp_path, monkeypatch):
    path = save(tmp_path / "g.onnx", [("Conv", ["x", "w"], ["y"], {})], {"w": W})
    content = path.read_bytes()
    path.write_bytes(content[:-40])
    assert "is a damaged ONNX model" in refusal(path)
    model = onnx.ModelProto.FromString(content)
    model.graph.initializer[0].raw_data = bytes(8)
    path.write_bytes(model.SerializeToString())
    assert "over 2 stored numbers; damaged or hostile" in refusal(path)
    path.write_bytes(content)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert 'onnxruntime, which lsa reads it with, is not installed; run pip install "lsa-robustness[onnx]"' in refusal(
        path
    )
