"""Data stored as arrays, made by Python code, or named wrongly."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from torchvision import datasets

from lsa_cli.data import DATA_SOURCES, may_download, open_data, runs_user_code, square_size, usual_size, with_paths
from lsa_cli.data.base import Traits, with_traits
from lsa_cli.data.factories import from_object
from lsa_cli.errors import DataError, SplitError, UsageError


def npz(folder, **arrays):
    path = folder / "some.npz"
    np.savez(path, **arrays)
    return f"npz:{path}"


def test_layouts_and_types_of_arrays(tmp_path):
    grey = np.arange(2 * 4 * 5, dtype=np.uint8).reshape(2, 4, 5)
    data = open_data(npz(tmp_path, x=grey, y=np.array([0, 1])))
    assert data.read(np.array([1])).shape == (1, 1, 4, 5)
    torch.testing.assert_close(data.read(np.array([1]))[0, 0], torch.from_numpy(grey[1]) / 255)
    last = np.random.default_rng(0).random((2, 4, 5, 3), dtype=np.float32)
    data = open_data(npz(tmp_path, images=last, labels=np.array([0, 1])))
    assert data.transform == "channels last, moved first"
    torch.testing.assert_close(data.read(np.array([0]))[0], torch.from_numpy(last[0].transpose(2, 0, 1)))


def test_splits_of_arrays(tmp_path):
    spec = npz(
        tmp_path, x_train=np.zeros((5, 2)), y_train=np.zeros(5, int), x_test=np.ones((3, 2)), y_test=np.ones(3, int)
    )
    assert (len(open_data(spec)), open_data(spec).split) == (3, "test")
    assert len(open_data(spec, split="train")) == 5
    assert len(open_data(spec + "?split=train")) == 5
    with pytest.raises(DataError, match="no array x_val or images_val for the split 'val'; it holds x_train"):
        open_data(spec, split="val")


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": np.zeros((3, 2)), "y": np.zeros(4, int)}, "one label per sample"),
        ({"x": np.zeros((3, 2)), "y": np.array([0, -1, 2])}, "label of sample 1 is -1"),
        ({"x": np.zeros((0, 2)), "y": np.zeros(0, int)}, "no samples"),
        ({"x": np.zeros((2, 2)), "y": np.array([0.5, 1])}, "whole class numbers"),
        ({"x": np.zeros((2, 2)), "y": np.array(["cat", "dog"])}, "labels are <U3; give whole class numbers"),
        ({"x": np.zeros((2, 2)), "y": np.array([0, np.nan])}, "whole class numbers"),
        ({"x": np.zeros((2, 2)), "y": np.array([[0, 1, 1], [1, 0, 0]])}, "give sample 0 2 classes"),
        ({"x": np.zeros((2, 2)), "y": np.array([[0.2, 0.8], [1, 0]])}, "shares of classes"),
        ({"x": np.zeros((2, 2)), "y": np.array([[0, 3], [1, 0]])}, r"not one-hot \(sample 0 has \[0, 3\]\)"),
        (
            {"x": np.zeros((2, 2)), "y": np.zeros((2, 3, 4), int)},
            r"labels have shape \(2, 3, 4\); give one class number",
        ),
        ({"x": np.zeros((2, 2)), "y": np.array([[0, 1]])}, r"y \(1, 2\); give one label per sample"),
        (
            {"x": np.zeros((2, 2)), "y": np.array([0, 2**63], np.uint64)},
            "sample 1 is 9223372036854775808; no network has",
        ),
        ({"x": np.zeros((2, 2)), "y": np.array([0, 1e300])}, r"sample 1 is 1e\+300; no network has"),
        ({"x": np.zeros((2, 2)), "y": np.array([0, 1j])}, "labels are complex128; give whole class numbers"),
        (
            {"x": np.zeros((2, 2)), "y": np.array([0, 2]), "class_names": np.array(["cat", "dog"])},
            r"sample 1 is 2, and the data names 2 classes \(0 to 1\)",
        ),
        ({"arr_0": np.zeros((2, 2)), "arr_2": np.zeros(2, int)}, r"holds arr_0, arr_2; .* with \?x=NAME&y=NAME"),
        ({"x": np.zeros((2, 4, 4), np.int32), "y": np.zeros(2, int)}, "int32"),
        ({"x": np.zeros((2, 1, 1, 1, 1)), "y": np.zeros(2, int)}, "shape"),
        ({"x": np.array([{}, {}], dtype=object), "y": np.zeros(2, int)}, "plain arrays"),
        ({"a": np.zeros(2)}, "it holds a"),
    ],
)
def test_bad_arrays(tmp_path, arrays, says):
    with pytest.raises(DataError, match=says):
        open_data(npz(tmp_path, **arrays))


@pytest.mark.parametrize(
    ("spec", "error", "says"),
    [
        ("npz:none.npz", DataError, "there is no file"),
        ("imagefolder:none", DataError, "there is no folder"),
        ("imagfolder:x", UsageError, "did you mean 'imagefolder'"),
        ("none", UsageError, "SOURCE:PATH"),
        ("torchvision:MNISTT?root=.", UsageError, "did you mean"),
        ("torchvision:MNIST?root=/nowhere", DataError, "Dataset not found.*put its files there, or add &download=true"),
        ("torchvision:MNIST?rot=/nowhere", UsageError, "did you mean 'root'"),
    ],
)
def test_bad_specs(spec, error, says):
    with pytest.raises(error, match=says):
        open_data(spec)


def test_factories(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import torch\n"
        "def arrays(n='4', split='test'):\n    return torch.rand(int(n), 1, 3, 3), torch.zeros(int(n), dtype=torch.long)\n"
        "def pairs():\n    return [(torch.rand(1, 2, 2), 0), (torch.rand(1, 2, 2), 1)]\n"
        "def wrong():\n    return 5\n"
        "def fails():\n    raise OSError('no disk')\n"
    )
    assert len(open_data(f"{file}:arrays?n=7")) == 7
    data = open_data(f"{file}:pairs")
    assert data.labels.tolist() == [0, 1]
    assert data.read(np.array([0, 1])).shape == (2, 1, 2, 2)
    with pytest.raises(DataError, match="returned int"):
        open_data(f"{file}:wrong")
    with pytest.raises(DataError, match="OSError: no disk"):
        open_data(f"{file}:fails")
    assert open_data(f"{file}:arrays", split="train").split == "train"
    with pytest.raises(SplitError, match="has no argument split for 'train'"):
        open_data(f"{file}:pairs", split="train")


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.uint64, np.float16, np.float64, bool])
def test_labels_of_any_type_that_are_whole_numbers_are_taken(tmp_path, dtype):
    """As numbers, as a column of numbers, and as one-hot rows; from a file and from Python."""
    numbers = np.array([0, 1, 1, 0, 0], dtype=dtype)
    for labels in (numbers, numbers[:, None], numbers[:, None, None], np.eye(2)[numbers.astype(int)].astype(dtype)):
        x = np.zeros((5, 2))
        pairs = [(torch.zeros(2), torch.from_numpy(label) if label.ndim else label) for label in labels]
        for data in (
            open_data(npz(tmp_path, x=x, y=labels)),
            from_object((x, labels), "arrays"),
            from_object(pairs, "pairs"),
        ):
            assert (data.labels.dtype, data.labels.tolist()) == (np.int64, [0, 1, 1, 0, 0])
            assert ("labels" in data.transform) == (labels.ndim > 1)


@pytest.mark.parametrize(
    ("names", "split", "found"),
    [
        (("x_val", "y_val"), None, "val"),
        (("X_test", "Y_test", "X_train", "Y_train"), None, "test"),
        (("test_images", "test_labels", "train_images", "train_labels", "val_images", "val_labels"), None, "test"),
        (("val_images", "val_labels", "train_images", "train_labels", "test_images", "test_labels"), "val", "val"),
        (("train_images", "train_labels", "test_images", "test_labels"), "train", "train"),
        (("imagesValid", "targetsValid"), "validation", "val"),
        (("xte", "yte", "xtr", "ytr"), None, "test"),
        (("data", "target"), None, ""),
        (("arr_0", "arr_1"), None, ""),
        (("images", "labels", "x_test", "y_test"), None, ""),
    ],
)
def test_names_of_arrays(tmp_path, names, split, found):
    """The first pair of names is the one that is read."""
    arrays = {name: np.full((3, 2), float(place < 2)) for place, name in enumerate(names) if place % 2 == 0}
    arrays |= {name: np.full((3, 1), int(place < 2)) for place, name in enumerate(names) if place % 2}
    data = open_data(npz(tmp_path, **arrays), split=split)
    assert (data.read(np.arange(3)).tolist(), data.labels.tolist(), data.split) == ([[1.0, 1.0]] * 3, [1] * 3, found)


def test_names_of_arrays_that_could_mean_two_things_are_asked_for(tmp_path):
    x, y = np.zeros((3, 2)), np.zeros(3, int)
    spec = npz(tmp_path, x_test=x, test_images=x + 1, y_test=y)
    with pytest.raises(UsageError, match=r"x_test and test_images could all be the images; add \?x=NAME"):
        open_data(spec)
    assert open_data(f"{spec}?x=test_images").read(np.array([0])).tolist() == [[1.0, 1.0]]
    with pytest.raises(SplitError, match="only training data; to audit on it, give --split train"):
        open_data(npz(tmp_path, x_train=x, y_train=y))
    with pytest.raises(
        DataError, match="no array y_test or labels_test for the split 'test'; it holds x_test, y_train"
    ):
        open_data(npz(tmp_path, x_test=x, y_train=y), split="test")


def test_a_path_alone_is_read_by_the_source_of_its_kind(tmp_path, monkeypatch):
    (tmp_path / "val" / "cat").mkdir(parents=True)
    spec = npz(tmp_path, x=np.ones((3, 2)), y=np.zeros(3, int))
    assert open_data(spec.removeprefix("npz:")).spec == spec
    with pytest.raises(DataError, match=f"imagefolder:{tmp_path / 'val'} holds no images"):
        open_data(f"{tmp_path / 'val'}")
    assert not runs_user_code(spec.removeprefix("npz:"))
    monkeypatch.chdir(tmp_path)
    moved = with_paths("some.npz?x=x&y=y", lambda path: f"{tmp_path}/{path.removeprefix(f'{tmp_path}/')}")
    assert moved == f"{spec}?x=x&y=y"
    with pytest.raises(
        DataError, match=f"is a folder, not an .npz file; for images in folders use imagefolder:{tmp_path}"
    ):
        open_data(f"npz:{tmp_path}")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floating_inputs_are_taken_as_they_are(tmp_path, dtype):
    x = np.linspace(0, 1, 8, dtype=dtype).reshape(2, 4)
    read = open_data(npz(tmp_path, x=x, y=np.zeros(2, int))).read(np.array([0, 1]))
    assert read.dtype == torch.float32
    np.testing.assert_array_equal(read.numpy(), x.astype(np.float32))


def test_bytes_run_from_zero_to_one(tmp_path):
    x = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    read = open_data(npz(tmp_path, x=x, y=np.zeros(1, int))).read(np.array([0]))
    np.testing.assert_array_equal(read.flatten().numpy(), np.arange(256, dtype=np.float32) / 255)


@pytest.mark.parametrize(
    ("shape", "channels_first"),
    [
        ((2, 3, 8, 8), (3, 8, 8)),
        ((2, 8, 8, 3), (3, 8, 8)),
        ((2, 8, 8, 1), (1, 8, 8)),
        ((2, 1, 8, 8), (1, 8, 8)),
        ((2, 8, 8, 4), (4, 8, 8)),
        ((2, 3, 8, 3), (3, 8, 3)),
        ((2, 1, 5, 4), (1, 5, 4)),
        ((2, 4, 6, 3), (3, 4, 6)),
        ((2, 8, 5), (1, 8, 5)),
        ((2, 7), (7,)),
    ],
)
def test_channels_are_found_first_or_last(tmp_path, shape, channels_first):
    data = open_data(npz(tmp_path, x=np.zeros(shape, np.uint8), y=np.zeros(2, int)))
    assert tuple(data.read(np.array([0])).shape[1:]) == channels_first


def test_grey_and_colour_are_not_mixed_up(tmp_path):
    generator = np.random.default_rng(0)
    colour = generator.integers(0, 256, (4, 3, 6, 6), dtype=np.uint8)
    spec = npz(tmp_path, x=colour, y=np.arange(4))
    with pytest.raises(DataError, match=r"in colour \(3 channels\) and the network takes 1 channel; add \?mode=gray"):
        open_data(spec, channels=1)
    data = open_data(f"{spec}?mode=gray", channels=1)
    assert data.transform == "channels first; colour turned grey by luma"
    weights = np.array([0.299, 0.587, 0.114]).reshape(3, 1, 1)
    expected = (colour / 255 * weights).sum(1, keepdims=True)
    np.testing.assert_allclose(data.read(np.arange(4)).numpy(), expected, atol=1e-6)
    grey = npz(tmp_path, x=colour[:, 0], y=np.arange(4))
    with pytest.raises(DataError, match=r"grey \(1 channel\) and the network takes 3 channels; add &mode=rgb"):
        open_data(f"{grey}?x=x", channels=3)
    read = open_data(f"{grey}?mode=rgb", channels=3).read(np.array([2]))
    assert read.shape == (1, 3, 6, 6)
    assert (read == torch.from_numpy(colour[2, :1]) / 255).all()
    with pytest.raises(UsageError, match="mode=gray makes images of 1 channels, but the network takes 3"):
        open_data(f"{spec}?mode=gray", channels=3)
    with pytest.raises(UsageError, match="unknown mode 'grey': did you mean 'gray'"):
        open_data(f"{spec}?mode=grey")
    with pytest.raises(DataError, match="neither grey nor colour"):
        open_data(npz(tmp_path, x=np.zeros((2, 5)), y=np.zeros(2, int)) + "?mode=rgb")


def test_arrays_keep_their_size_unless_one_is_asked_for(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (3, 90, 90, 3), dtype=np.uint8)
    spec = npz(tmp_path, x=x, y=np.zeros(3, int))
    kept = open_data(spec, size=usual_size(70, 70, "the checkpoint"))
    assert kept.read(np.arange(3)).shape == (3, 3, 90, 90)
    assert "resized" not in kept.transform
    data = open_data(spec, size=square_size(70))
    assert data.read(np.arange(3)).shape == (3, 3, 70, 70)
    assert data.transform.endswith("shorter side resized to 80 (bilinear), centre 70 x 70 cropped, by --input-size 70")
    with pytest.raises(DataError, match="are not images; leave out --input-size"):
        open_data(npz(tmp_path, x=np.zeros((2, 5)), y=np.zeros(2, int)), size=square_size(8))


def test_arrays_are_resized_one_by_one(tmp_path):
    """Which images share a batch changes nothing."""
    x = np.random.default_rng(0).random((6, 3, 20, 20), dtype=np.float32)
    read = open_data(npz(tmp_path, x=x, y=np.zeros(6, int)), size=square_size(13)).read
    together = read(np.arange(6))
    for row in range(6):
        assert torch.equal(read(np.array([row]))[0], together[row])


def test_objects_in_python_are_held_to_the_network(tmp_path):
    pairs = [(torch.rand(1, 5, 5), 0), (torch.rand(1, 5, 5), 1)]
    with pytest.raises(DataError, match=r"grey .* takes 3 channels; convert them first"):
        from_object(pairs, "pairs", channels=3)
    resized = from_object(pairs, "pairs", size=square_size(8))
    assert resized.read(np.arange(2)).shape == (2, 1, 8, 8)
    assert resized.transform == "resized to 8 x 8 (bilinear), by --input-size 8"
    with pytest.raises(DataError, match="tensors of one shape"):
        from_object([("text", 0)], "texts")
    with pytest.raises(DataError, match="no samples"):
        from_object([], "nothing")


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("{root}", r"holds data of torchvision: say --data torchvision:MNIST\\?root={root}|'torchvision:MNIST"),
        ("{root}/MNIST", "'torchvision:MNIST.root={root}'$"),
        ("cifar-10", r"say --data 'torchvision:CIFAR10\?root=DIR', with the folder"),
        ("{root}/x.bin", "lsa reads no data from {root}/x.bin; write a function"),
        ("{root}/none", r"there is no file or folder {root}/none \(you are in "),
    ],
)
def test_what_is_no_data_is_told_what_to_say(tmp_path, typed, says):
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    (tmp_path / "x.bin").write_bytes(b"")
    with pytest.raises(UsageError, match=says.replace("{root}", str(tmp_path))):
        open_data(typed.replace("{root}", str(tmp_path)))


def test_loaders_and_pictures_in_python():
    pictures = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)
    pairs = [(Image.fromarray(picture), row % 2) for row, picture in enumerate(pictures)]
    wanted = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255
    assert torch.equal(from_object(pairs, "pairs").read(np.arange(5)), wanted)
    grey = [(Image.fromarray(picture[..., 0]), 0) for picture in pictures]
    assert torch.equal(from_object(grey, "grey").read(np.arange(5)), wanted[:, :1])
    tensors = TensorDataset(wanted, torch.arange(5))
    loader = from_object(DataLoader(tensors, batch_size=2, shuffle=True), "loader")
    assert loader.labels.tolist() == list(range(5))  # in the order of the data set, each sample once
    assert torch.equal(loader.read(np.array([3, 1])), wanted[[3, 1]])

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(tensors)

    assert torch.equal(from_object(DataLoader(Stream()), "stream").read(np.array([4])), wanted[[4]])


def test_labels_may_be_a_plain_list_of_numbers():
    x = torch.rand(3, 1, 4, 4)
    found = from_object((x, [2, 0, 1]), "list")
    assert found.labels.tolist() == [2, 0, 1]
    assert torch.equal(found.read(np.arange(3)), x)
    with pytest.raises(DataError, match="give whole class numbers"):
        from_object((x, ["cat", "dog", "cat"]), "list")


def test_a_loader_gives_the_samples_that_it_takes_as_it_collates_them():
    x, y = torch.rand(8, 1, 4, 4), torch.arange(8) % 3
    pairs = TensorDataset(x, y)

    def flipped(batch):
        return torch.stack([image.flip(-1) for image, _ in batch]), torch.stack([label for _, label in batch])

    def as_mapping(batch):
        return {"image": flipped(batch)[0], "label": flipped(batch)[1]}

    part = SubsetRandomSampler([6, 2, 5])
    batches = BatchSampler(SequentialSampler(range(4)), 2, drop_last=False)
    for options, rows, collated in (
        ({"sampler": part}, [2, 5, 6], False), ({"batch_sampler": list(batches)}, [0, 1, 2, 3], False),
        ({"collate_fn": flipped}, list(range(8)), True), ({"sampler": part, "collate_fn": as_mapping}, [2, 5, 6], True),
    ):  # fmt: skip
        found = from_object(
            DataLoader(pairs, **({"batch_size": 3} if "batch_sampler" not in options else {}), **options), "l"
        )
        assert found.labels.tolist() == y[rows].tolist()
        assert torch.equal(found.read(np.arange(len(rows))), x[rows].flip(-1) if collated else x[rows])
    twice = DataLoader(pairs, sampler=WeightedRandomSampler(torch.ones(8), 40))
    with pytest.raises(DataError, match="takes some samples more than once"):
        from_object(twice, "l")


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST"])
def test_a_known_set_is_known_by_its_labels_and_not_by_its_file(data_root, tmp_path, name):
    labels = np.asarray(getattr(datasets, name)(data_root, train=False).targets)
    zeros = np.zeros((len(labels), 1), np.uint8)
    path = tmp_path / "cifar10.npz"
    np.savez(path, x=zeros, y=labels)
    data = open_data(f"npz:{path}")
    assert (data.name, data.called) == (name.lower(), "cifar10")
    np.savez(path, x=zeros, y=labels[::-1])
    assert (open_data(f"npz:{path}").name, data.called) == ("", "cifar10")


def test_a_known_set_is_known_by_its_classes_in_any_order(tmp_path):
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    arrays = {"x": np.zeros((3, 2)), "y": np.arange(3)}
    assert open_data(npz(tmp_path, **arrays, class_names=names[::-1])).name == "cifar10"
    assert open_data(npz(tmp_path, **arrays, class_names=names[:9])).name == ""


@pytest.fixture
def corrupted(tmp_path):
    """Fifty 32 x 32 images: ten for each severity, which is told by the first pixel."""
    labels = np.tile(np.arange(10), 5)
    images = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3), dtype=np.uint8)
    images[:, 0, 0, 0] = np.repeat(np.arange(1, 6), 10)
    np.save(tmp_path / "fog.npy", images)
    np.save(tmp_path / "gaussian_noise.npy", images[::-1])
    np.save(tmp_path / "labels.npy", labels)
    return tmp_path, images


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_a_severity_of_a_corruption(corrupted, severity):
    folder, images = corrupted
    data = open_data(f"cifar-c:{folder}?corruption=fog&severity={severity}", channels=3)
    assert data.labels.tolist() == list(range(10))
    read = data.read(np.array([7, 2]))
    assert (read[:, 0, 0, 0] * 255).round().tolist() == [severity, severity]
    expected = images[(severity - 1) * 10 + np.array([7, 2])].transpose(0, 3, 1, 2).astype(np.float32) / 255
    np.testing.assert_array_equal(read.numpy(), expected)
    assert read.is_contiguous()
    assert data.class_names[:2] == ("airplane", "automobile")
    assert (data.name, data.spec.rpartition("?")[2]) == ("cifar10", f"corruption=fog&severity={severity}")


@pytest.mark.parametrize(
    ("query", "error", "says"),
    [
        ("", UsageError, r"add \?corruption=NAME with one of fog, gaussian_noise"),
        ("?corruption=fgo&severity=1", UsageError, "did you mean 'fog'"),
        ("?corruption=fog", UsageError, "no severity is given; add &severity=N, 1 "),
        ("?corruption=fog&severity=6", UsageError, "there is no severity 6"),
        ("?corruption=fog&severity=1&split=train", SplitError, "test images only"),
        ("?corruption=fog&severty=1", UsageError, "did you mean 'severity'"),
        ("/none?corruption=fog&severity=1", DataError, "there is no .*labels.npy"),
    ],
)
def test_bad_requests_for_corruptions(corrupted, query, error, says):
    with pytest.raises(error, match=says):
        open_data(f"cifar-c:{corrupted[0]}{query}")


def test_bad_files_of_corruptions(corrupted):
    folder, images = corrupted
    np.save(folder / "short.npy", images[:49])
    np.save(folder / "float.npy", images.astype(np.float32))
    np.save(folder / "objects.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
    (folder / "junk.npy").write_bytes(b"not an array")
    for name, says in {
        "short": "49 images and labels of shape",
        "float": "must be uint8",
        "objects": "plain numbers",
        "junk": "plain numbers",
    }.items():
        with pytest.raises(DataError, match=says):
            open_data(f"cifar-c:{folder}?corruption={name}&severity=1")


def test_a_checkpoint_starts_no_download_and_no_code(tmp_path):
    for spec in ("torchvision:MNIST?root=.&download=true", "hf:someone/something"):
        with pytest.raises(DataError, match="names data to download"):
            open_data(spec, relative_to=tmp_path)
    assert runs_user_code("pkg.mod:factory")
    for source in ("npz", "csv", "imagefolder", "torchvision", "hf", "webdataset", "cifar-c"):
        assert not runs_user_code(f"{source}:x")


def test_a_source_of_a_plugin_counts_as_code_unless_it_states_that_it_runs_none(monkeypatch):
    monkeypatch.setattr(DATA_SOURCES, "_entries", dict(DATA_SOURCES._entries))
    DATA_SOURCES.register("silent")(lambda request: None)
    DATA_SOURCES.register("plain")(with_traits(Traits(downloads=lambda location, options: True))(lambda request: None))
    assert (runs_user_code("silent:x"), runs_user_code("plain:x")) == (True, False)
    assert (may_download("silent:x"), may_download("plain:x")) == (False, True)


def test_data_beside_a_checkpoint(tmp_path):
    np.savez(tmp_path / "some.npz", x=np.zeros((2, 3)), y=np.zeros(2, int))
    assert len(open_data("npz:some.npz", relative_to=tmp_path)) == 2


class Mappings(torch.utils.data.Dataset):
    def __init__(self, x, y, names=("image", "label")):
        self.x, self.y, self.names = x, y, names

    def __len__(self):
        return len(self.x)

    def __getitem__(self, row):
        return dict(zip(self.names, (self.x[row], int(self.y[row])), strict=True))


def test_mappings_of_images_and_labels_are_read_as_pairs_are():
    x, y = torch.rand(7, 3, 4, 4), torch.arange(7) % 3
    rows = np.arange(7)
    for made in (
        Mappings(x, y), Mappings(x, y, ("pixel_values", "y")), DataLoader(Mappings(x, y), batch_size=2),
        {"images": x, "labels": y[:, None]}, {"x": x.numpy(), "y": np.eye(3)[y]},
    ):  # fmt: skip
        data = from_object(made, "made")
        assert torch.equal(data.read(rows), x)
        assert data.labels.tolist() == y.tolist()
    with pytest.raises(DataError, match="a mapping with a, b has no usual name of an image and a label"):
        from_object(Mappings(x, y, ("a", "b")), "made")


# ---- files of torch.save, and pairs of .npy files ---------------------------------------------------------


@pytest.mark.parametrize(
    "store",
    [
        lambda x, y: (x, y),
        lambda x, y: [x, y],
        lambda x, y: {"x": x, "y": y},
        lambda x, y: {"images": x, "labels": y.tolist()},
    ],
)
def test_tensors_of_torch_save_are_read(store, tmp_path):
    x, y = torch.rand(4, 1, 5, 5), torch.tensor([0, 1, 1, 0])
    torch.save(store(x, y), tmp_path / "test.pt")
    data = open_data(str(tmp_path / "test.pt"))
    assert data.spec == f"torch:{tmp_path}/test.pt"
    assert torch.equal(data.read(np.arange(4)), x)
    assert data.labels.tolist() == y.tolist()
    assert not runs_user_code(data.spec)


@pytest.mark.parametrize(
    ("stored", "says"),
    [
        (torch.zeros(4, 1, 5, 5), "holds a Tensor; save images and labels"),
        (TensorDataset(torch.zeros(2, 3), torch.zeros(2)), "holds more than tensors, which could run code"),
        ({"x": torch.zeros(2, 3)}, "no array y or labels"),
        ((torch.zeros(2, 3), torch.zeros(3)), "give one label per sample"),
    ],
)
def test_other_files_of_torch_save_are_refused_with_what_to_save(stored, says, tmp_path):
    torch.save(stored, tmp_path / "test.pt")
    with pytest.raises(DataError, match=says):
        open_data(str(tmp_path / "test.pt"))


def test_the_labels_of_an_npy_file_lie_beside_it(tmp_path):
    x, y = np.random.default_rng(0).random((4, 5, 5), dtype=np.float32), np.array([0, 1, 1, 0])
    for name, array in {"X_train": x[:2], "y_train": y[:2], "X_test": x, "y_test": y}.items():
        np.save(tmp_path / f"{name}.npy", array)
    data = open_data(str(tmp_path / "X_test.npy"))
    assert data.labels.tolist() == y.tolist()
    assert data.split == "test"
    with pytest.raises(SplitError, match="leave --split out"):
        open_data(str(tmp_path / "X_test.npy"), split="train")
    (tmp_path / "y_test.npy").unlink()
    with pytest.raises(DataError, match=r"names such as x_test.npy and y_test.npy.*--data data.npz"):
        open_data(str(tmp_path / "X_test.npy"))
