"""Weights put into networks, strictly, from the many shapes that real files have."""

import json
import os
import subprocess
import sys
import textwrap
import zipfile
from collections import OrderedDict

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from lsa_cli.errors import CheckpointError, UsageError
from lsa_cli.layers import find_layers, tap
from lsa_cli.models.architectures import build_architecture
from lsa_cli.models.checkpoint import Description, read_checkpoint, write_checkpoint
from lsa_cli.models.fitting import load_strictly
from lsa_cli.models.hostile import refuse_unsafe_torch
from lsa_cli.models.loading import load_network
from tests import foreign_networks


def fresh():
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


@pytest.fixture
def body():
    torch.manual_seed(0)
    network = fresh()
    network[1].running_mean.uniform_()
    return network


def saved(tmp_path, content, **options):
    torch.save(content, tmp_path / "model.pt", **options)
    return tmp_path / "model.pt"


def load(path, weights=None):
    """Into the small network of these tests."""
    network, checkpoint = fresh(), read_checkpoint(path, weights)
    notes = list(checkpoint.notes)
    load_strictly(network, checkpoint, str(path), notes)
    return network, notes


def load_arch(path, arch=None, weights=None, **arguments):
    return load_network(read_checkpoint(path, weights), arch, arguments)


def same(network, body):
    state = body.state_dict()
    return all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


WRAPPINGS = {
    "plain": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3, "best": 0.5},
    "model_state_dict": lambda state: {"model_state_dict": state, "optimizer": {"lr": 0.1}},
    "model": lambda state: {"model": state, "args": {"width": 4}},
    "net": lambda state: {"net": state, "acc": 91.0, "epoch": 4},
    "network": lambda state: {"network": state},
    "params": lambda state: {"params": state},
    "weights": lambda state: {"weights": state},
    "ema alone": lambda state: {"ema": state},
    "nested": lambda state: {"net": {"state_dict": state}, "epoch": 1},
    "a list of one": lambda state: [state],
    "DataParallel": lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}, "acc": 1},
    "compiled, wrapped": lambda state: {f"module._orig_mod.model.{k}": v for k, v in state.items()},
    "net. and backbone.": lambda state: {f"net.backbone.{k}": v for k, v in state.items()},
    "averaged model": lambda state: {"n_averaged": torch.tensor(3), **{f"module.{k}": v for k, v in state.items()}},
    "compiled within": lambda state: {k.replace("3.", "3._orig_mod."): v for k, v in state.items()},
}


@pytest.mark.parametrize("name", WRAPPINGS)
@pytest.mark.parametrize("zipped", [True, False])
def test_weights_are_found_where_people_put_them(tmp_path, body, name, zipped):
    content = WRAPPINGS[name](body.state_dict())
    network, notes = load(saved(tmp_path, content, _use_new_zipfile_serialization=zipped))
    assert same(network, body)
    assert any("prefix" in note for note in notes) == any(
        word in name for word in ("Data", "compiled", "net.", "averaged")
    )


def test_safetensors_are_read_whatever_their_suffix(tmp_path, body):
    path = tmp_path / "model.bin"
    save_file({f"model.{name}": tensor for name, tensor in body.state_dict().items()}, path)
    assert same(load(path)[0], body)


def test_weights_saved_on_cuda_are_read_without_it(tmp_path, body):
    """The file says of each tensor that it was on cuda:0, as torch.save writes it there."""
    path, moved = saved(tmp_path, body.state_dict()), tmp_path / "cuda.pt"
    here, there = b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(moved, "w") as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry).replace(here, there))
    with zipfile.ZipFile(moved) as archive:
        assert there in archive.read("model/data.pkl")
    network, _ = load(moved)
    assert same(network, body)
    assert network[0].weight.device.type == "cpu"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("zipped", [True, False])
def test_weights_on_a_real_cuda_device(tmp_path, body, zipped):
    path = saved(tmp_path, fresh().cuda().state_dict(), _use_new_zipfile_serialization=zipped)
    assert load(path)[0][0].weight.device.type == "cpu"


# ---- several sets of weights ---------------------------------------------------------------------------


def other(state):
    return {name: tensor + 1 for name, tensor in state.items()}


@pytest.mark.parametrize(
    "names", [("model", "model_ema"), ("net", "ema"), ("state_dict", "state_dict_ema"), ("model", "ema_state_dict")]
)
def test_weights_beside_their_average_are_taken_and_the_average_on_demand(tmp_path, body, names):
    path = saved(tmp_path, {names[0]: body.state_dict(), names[1]: other(body.state_dict()), "epoch": 1})
    network, notes = load(path)
    assert same(network, body)
    assert f"the file also holds averaged weights: --weights {names[1]}" in notes
    network, notes = load(path, names[1])
    assert torch.equal(network[0].weight, body[0].weight + 1)
    assert f"weights taken from '{names[1]}', by --weights" in notes


@pytest.mark.parametrize("container", [list, tuple])
def test_of_a_list_of_weights_the_user_picks_one(tmp_path, body, container):
    path = saved(tmp_path, container([other(body.state_dict()), body.state_dict()]))
    with pytest.raises(UsageError, match="several sets of weights; choose one with --weights: 0, 1"):
        load(path)
    assert same(load(path, "1")[0], body)
    with pytest.raises(UsageError, match="there are 0, 1"):
        load(path, "2")


def test_of_two_networks_in_one_set_of_weights_the_user_picks_by_the_start_of_the_names(tmp_path, body):
    state = body.state_dict()
    mixed = {f"student.{k}": v for k, v in state.items()} | {f"teacher.{k}": v for k, v in other(state).items()}
    path = saved(tmp_path, {"state_dict": mixed})
    with pytest.raises(CheckpointError, match=r"under 'student\.' alone would fit: --weights student"):
        load(path)
    assert same(load(path, "student")[0], body)
    assert torch.equal(load(path, "teacher")[0][0].weight, body[0].weight + 1)


def test_a_dictionary_class_of_the_users_own_is_looked_into(tmp_path, body):
    assert same(load(saved(tmp_path, {"state_dict": Weights(body.state_dict())}))[0], body)


class Weights(dict):
    pass


# ---- strictness ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["model.", "network.", "module.model."])
def test_what_lightning_keeps_beside_the_network_is_left_out_by_name(tmp_path, body, prefix):
    state = {f"{prefix}{k}": v for k, v in body.state_dict().items()}
    beside = {"criterion.weight": torch.ones(3), "train_acc.tp": torch.tensor(1), "val_metrics.f1.fn": torch.ones(3)}
    network, notes = load(saved(tmp_path, {"state_dict": {**state, **beside}, "pytorch-lightning_version": "2"}))
    assert same(network, body)
    assert "3 tensors beside the network are not used: criterion.weight, train_acc.tp, val_metrics.f1.fn" in notes


@pytest.mark.parametrize("name", ["mean", "head.weight", "model.extra.weight", "class_weights", "backbone.0.weight"])
def test_nothing_else_is_left_out(tmp_path, body, name):
    state = {f"model.{k}": v for k, v in body.state_dict().items()}
    with pytest.raises(CheckpointError, match="unexpected"):
        load(saved(tmp_path, {**state, name: torch.ones(3)}))


def test_what_does_not_fit_is_counted_and_named(tmp_path, body):
    state = body.state_dict()
    state["extra.weight"] = state.pop("0.bias")
    state["3.weight"] = torch.zeros(5, 6)
    state["3.bias"] = torch.zeros(3, dtype=torch.int32)
    with pytest.raises(CheckpointError) as caught:
        load(saved(tmp_path, state))
    message = str(caught.value)
    assert "1 missing (first: 0.bias)" in message
    assert "1 unexpected (first: extra.weight)" in message
    assert "2 of another shape or type (3.weight is (5, 6), the network has (3, 6), 3.bias is of type int32)" in message


@pytest.mark.parametrize("odd", [None, torch.tensor([5]), torch.tensor(5.0)], ids=["absent", "shape", "type"])
def test_step_counters_may_be_absent_or_odd(tmp_path, body, odd):
    state = body.state_dict()
    del state["1.num_batches_tracked"]
    if odd is not None:
        state["1.num_batches_tracked"] = odd
    network, notes = load(saved(tmp_path, state))
    assert torch.equal(network[1].running_mean, body[1].running_mean)
    assert any("1 BatchNorm step counters" in note for note in notes)


def test_a_missing_running_mean_is_an_error(tmp_path, body):
    state = body.state_dict()
    del state["1.running_mean"]
    with pytest.raises(CheckpointError, match=r"1 missing \(first: 1.running_mean\)"):
        load(saved(tmp_path, state))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_diverged_are_refused(tmp_path, body, value):
    state = body.state_dict()
    state["3.bias"] = torch.tensor([0.0, value, 1.0])
    with pytest.raises(CheckpointError, match=r"NaN or infinity \(first: 3.bias\)"):
        load(saved(tmp_path, state))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_become_float32_and_that_is_said(tmp_path, body, dtype):
    state = {name: t.to(dtype) if t.is_floating_point() else t for name, t in body.state_dict().items()}
    network, notes = load(saved(tmp_path, state))
    assert torch.equal(network[0].weight, body[0].weight.to(dtype).float())
    assert network[0].weight.dtype == torch.float32
    assert f"weights stored as {str(dtype).removeprefix('torch.')} were converted to float32" in notes


def test_views_of_one_storage_and_other_strides_keep_their_values(tmp_path):
    """As fused optimizers and channels_last leave them."""
    flat = torch.arange(4 * 6 + 6 + 6 * 3 + 3, dtype=torch.float32)
    network = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))
    state = {
        "0.weight": flat[:24].view(4, 6).t(), "0.bias": flat[24:30],
        "1.weight": flat[30:48].view(3, 6), "1.bias": flat[48:],
    }  # fmt: skip
    path = saved(tmp_path, state)
    load_strictly(network, read_checkpoint(path), str(path), [])
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


class Copies(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.register_state_dict_post_hook(
            lambda module, state, prefix, metadata: state.update(weight=state["weight"] * 1)
        )


@pytest.mark.parametrize(("network", "says"), [(Copies(), "gives copies"), (nn.LazyLinear(3), "lazy layers")])
def test_a_network_that_nothing_can_be_loaded_into_is_refused(tmp_path, network, says):
    path = saved(tmp_path, {"weight": torch.ones(3)})
    with pytest.raises(CheckpointError, match=says):
        load_strictly(network, read_checkpoint(path), "it", [])


# ---- architectures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["mobilenet_v3_small", "squeezenet1_1", "shufflenet_v2_x0_5", "mnasnet0_5", "resnet18"]
)
@pytest.mark.parametrize("form", ["torch", "safetensors", "wrapped"])
@pytest.mark.parametrize("named", [True, False])
def test_the_number_of_classes_is_read_from_the_weights_in_every_format(tmp_path, name, form, named):
    """safetensors keeps the names in another order, so the last tensor of the file is not the last layer."""
    network, path = build_architecture(f"torchvision:{name}", {"num_classes": 5}), tmp_path / "weights"
    if form == "safetensors":
        save_file({key: tensor.contiguous() for key, tensor in network.state_dict().items()}, path)
    else:
        prefix = "module." if form == "wrapped" else ""
        torch.save({prefix + key: tensor for key, tensor in network.state_dict().items()}, path)
    loaded = load_arch(path, f"torchvision:{name}" if named else None)
    assert (loaded.arch, loaded.arch_args) == (f"torchvision:{name}", {"num_classes": 5})
    assert same(loaded.body, network)
    assert any("num_classes=5" in note for note in loaded.notes)
    assert any("found by the names and shapes of the weights" in note for note in loaded.notes) != named


def test_weights_of_another_network_do_not_fit_and_are_counted(tmp_path):
    path = saved(tmp_path, build_architecture("torchvision:squeezenet1_1", {}).state_dict())
    with pytest.raises(CheckpointError, match=r"do not fit: \d+ missing .*unexpected"):
        load_arch(path, "torchvision:resnet18")


def test_weights_of_no_known_network_need_an_architecture_and_the_nearest_are_listed(tmp_path):
    network = torchvision.models.shufflenet_v2_x0_5()
    network.fc = nn.Sequential(nn.Dropout(), nn.Linear(1024, 7))
    with pytest.raises(
        UsageError, match=r"nearest are .*torchvision:shufflenet_v2_x0_5: 2 missing \(fc\.bias, fc\.weight\), 2 other"
    ):
        load_arch(saved(tmp_path, network.state_dict()))
    with pytest.raises(UsageError, match="name the network with --arch"):
        load_arch(saved(tmp_path, nn.Linear(2, 2).state_dict()))


def test_arguments_add_to_what_was_recognised_and_traceless_ones_are_told(tmp_path):
    path = saved(
        tmp_path, build_architecture("torchvision:googlenet", {"num_classes": 4, "aux_logits": False}).state_dict()
    )
    loaded = load_arch(path)
    assert loaded.arch_args == {"aux_logits": False, "num_classes": 4}
    assert any("transform_input" in note for note in loaded.notes)
    loaded = load_arch(path, transform_input=True)
    assert loaded.body.transform_input
    assert not any("transform_input=true" in note for note in loaded.notes)


def test_a_file_that_describes_itself_needs_no_architecture(tmp_path):
    network = build_architecture("lsa:mnist-cnn", {"num_classes": 4})
    path = tmp_path / "m.pt"
    write_checkpoint(path, network, Description(architecture="lsa:mnist-cnn", arch_args={"num_classes": 4}))
    loaded = load_arch(path)
    assert (loaded.arch, loaded.arch_args) == ("lsa:mnist-cnn", {"num_classes": 4})
    assert same(loaded.body, network)


def timm_folder(folder, network, **config):
    """As timm.models.save_for_hf writes it."""
    from timm.models import save_for_hf

    save_for_hf(network, folder, model_config=config or None, safe_serialization=True)
    return folder


def test_a_folder_of_timm_is_built_by_its_own_description(tmp_path):
    timm = pytest.importorskip("timm")
    network = timm.create_model("resnet10t", num_classes=4)
    folder = timm_folder(tmp_path / "timm", network, label_names=["a", "b", "c", "d"])
    checkpoint = read_checkpoint(folder)
    assert checkpoint.description.class_names == ["a", "b", "c", "d"]
    assert checkpoint.description.mean == pytest.approx([0.485, 0.456, 0.406], abs=0.1)
    loaded = load_network(checkpoint, None, {})
    assert (loaded.arch, loaded.arch_args["num_classes"]) == ("timm:resnet10t", 4)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.body.eval()(x), network.eval()(x))


def test_a_folder_cannot_make_timm_read_another_file(tmp_path):
    timm = pytest.importorskip("timm")
    folder = timm_folder(tmp_path / "timm", timm.create_model("resnet10t", num_classes=4))
    config = json.loads((folder / "config.json").read_text())
    config["model_args"] = {"checkpoint_path": str(tmp_path / "evil.pth")}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="checkpoint_path is not an argument of a network"):
        load_arch(folder)


def test_a_folder_of_transformers_is_named_for_what_it_is(tmp_path):
    save_file({"resnet.embedder.embedder.convolution.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "model.safetensors")
    config = {"architectures": ["ResNetForImageClassification"], "model_type": "resnet"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"ResNetForImageClassification of Hugging Face transformers.*--arch path/to"):
        load_arch(tmp_path)


# ---- programs ------------------------------------------------------------------------------------------


def program(path, kind, network):
    x = torch.rand(2, 4)
    if kind == "torchscript":
        torch.jit.save(torch.jit.trace(network.eval(), x), path)
    else:
        batch = {0: torch.export.Dim("batch")}
        torch.export.save(torch.export.export(network.eval(), (x,), dynamic_shapes=(batch,)), path)


@pytest.mark.parametrize("kind", ["torchscript", "torch-export"])
@pytest.mark.filterwarnings("ignore")
def test_a_program_gives_its_weights_freely_and_runs_only_when_trusted(tmp_path, body, kind):
    path = tmp_path / "model.pt2"
    program(path, kind, body)
    checkpoint = read_checkpoint(path)
    assert same(load(path)[0], body)
    with pytest.raises(CheckpointError, match=r"is code: name the network with --arch.*--trust-code"):
        load_network(checkpoint, None, {})
    loaded = load_network(checkpoint, None, {}, trust_code=True)
    assert loaded.shows_layers == (kind == "torch-export")
    x = (10 * torch.randn(5, 4)).requires_grad_()
    torch.testing.assert_close(loaded.body(x), body.eval()(x))
    assert torch.autograd.grad(loaded.body(x).sum(), x)[0].abs().sum() > 0


@pytest.mark.filterwarnings("ignore")
def test_an_exported_program_shows_the_layers_of_its_network(tmp_path):
    network = nn.Sequential(
        OrderedDict(conv=nn.Conv2d(1, 2, 3), relu=nn.ReLU(), flat=nn.Flatten(), fc=nn.Linear(2 * 36, 3))
    ).eval()
    x = torch.rand(5, 1, 8, 8)
    program = torch.export.export(network, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, tmp_path / "m.pt2")
    body = load_network(read_checkpoint(tmp_path / "m.pt2"), None, {}, trust_code=True).body
    seen = {}
    with tap(body, None, lambda name, output: seen.update({name: output})):
        body(x)
    assert torch.equal(seen["conv"], network.conv(x))
    assert torch.equal(seen["relu:relu"], network.conv(x).relu())
    with torch.no_grad():
        layers = {layer.name: layer for layer in find_layers(body, lambda: body(x), len(x))}
    assert layers["relu:relu"].is_activation
    assert layers["conv"].is_learnable
    assert layers["fc"].is_output


@pytest.mark.parametrize("count", [1, 4, 6])
@pytest.mark.filterwarnings("ignore")
def test_an_exported_program_is_given_the_only_batch_that_it_takes(tmp_path, body, count):
    torch.export.save(torch.export.export(body.eval(), (torch.rand(4, 4),)), tmp_path / "m.pt2")
    loaded = load_network(read_checkpoint(tmp_path / "m.pt2"), None, {}, trust_code=True)
    x = torch.randn(count, 4)
    torch.testing.assert_close(loaded.body(x), body(x))
    assert not loaded.shows_layers
    assert any("takes 4 images at a time" in note for note in loaded.notes)


# ---- versions, memory, real files ----------------------------------------------------------------------


@pytest.mark.parametrize("version", ["2.5.1+cu121", "2.9.1", "1.13.0a0", "2.0"])
def test_torch_with_a_known_way_around_safe_loading_is_refused(version):
    with pytest.raises(UsageError, match=f"torch {version[:3]}"):
        refuse_unsafe_torch(version)


@pytest.mark.parametrize("version", ["2.10.0", "2.10.0a0+git1234", "2.15.0+cpu", "3.0.0", torch.__version__])
def test_torch_without_one_is_accepted(version):
    refuse_unsafe_torch(version)


PEAK = """
    import sys, threading, torch
    from torch import nn
    from lsa_cli.models.checkpoint import read_checkpoint
    from lsa_cli.models.fitting import load_strictly

    def resident():
        with open("/proc/self/statm") as file:
            _, total, mapped = map(int, file.read().split()[:3])
        return (total - mapped) * 4096  # pages of a mapped file are the system's, which takes them back at will

    network = nn.Sequential(*[nn.Linear(2000, 2000) for _ in range(12)])
    before, seen, done = resident(), [0], threading.Event()

    def watch():
        while not done.wait(0.0005):
            seen.append(resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    load_strictly(network, read_checkpoint(sys.argv[1]), "it", [])
    done.set()
    watcher.join()
    print(len(seen), max(seen) - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_loading_needs_little_memory_beside_the_network(tmp_path, form):
    """192 MB of weights in 24 tensors are read one at a time, or, of an old file, once by torch before that."""
    path = tmp_path / "model"
    state = {f"{i}.{n}": torch.rand(s) for i in range(12) for n, s in (("weight", (2000, 2000)), ("bias", (2000,)))}
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PEAK), str(path)],
        capture_output=True,
        text=True,
        check=True,
        # Memory that is freed goes back to the system at once. By default glibc keeps up to two tensors of this size.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"},
    )
    looks, more = map(int, done.stdout.split())
    assert looks > 20
    copies = 1.1 if form == "legacy" else 0.2  # where one tensor is a twelfth
    assert 0 < more < copies * path.stat().st_size


def test_the_most_common_cifar_checkpoint_is_recognised_and_gives_the_logits_of_another_implementation(data_root):
    path = data_root / "checkpoints/pytorch_resnet_cifar10/resnet20-12fca82f.th"
    loaded = load_arch(path)
    assert (loaded.arch, loaded.arch_args) == ("lsa:cifar-resnet20", {"num_classes": 10})
    theirs = foreign_networks.ResNet20()
    load_strictly(theirs, read_checkpoint(path), "it", [])
    x = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded.body.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize(
    ("file", "claim"),
    [
        ("alpha-beta-CROWN/resnet2b.pth", (0.6925, "test_acc")),
        ("pytorch_resnet_cifar10/resnet20-12fca82f.th", (0.9178, "best_prec1")),
        ("fast_adversarial/fgsm.pth", None),
    ],
)
def test_claimed_accuracies_of_real_files(data_root, file, claim):
    found = read_checkpoint(data_root / "checkpoints" / file).claimed_accuracy
    assert found == (None if claim is None else (pytest.approx(claim[0], abs=1e-4), claim[1]))


@pytest.mark.parametrize(
    ("file", "network", "weights", "prefix"),
    [
        ("fast_adversarial/fgsm.pth", "small_cnn", None, None),
        ("advertorch/mnist_lenet5_advtrained.pt", "LeNet5", None, None),
        ("derived/lenet5_advtrained.pt2", "LeNet5", None, None),
        ("burn/mnist.safetensors", "Burn", None, None),
        ("derived/fashion_mnist_fp16_model_prefix.safetensors", "small_cnn", None, "model."),
        ("derived/mnist_net_model_and_model_ema.pth", "small_cnn", "model_ema", "module."),
        ("derived/resnet20_torchcompile_orig_mod.pt", "ResNet20", None, "_orig_mod."),
        ("Pytorch-Lightning-practice/epoch=4-step=4300.ckpt", "lightning", None, "network."),
    ],
)
def test_real_files_fit_their_architectures(data_root, file, network, weights, prefix):
    body = getattr(foreign_networks, network)()
    notes = []
    load_strictly(body, read_checkpoint(data_root / "checkpoints" / file, weights), file, notes)
    assert [note for note in notes if "prefix" in note] == (
        [f"prefix '{prefix}' removed from the names of the weights"] if prefix else []
    )
