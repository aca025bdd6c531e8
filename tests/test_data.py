import numpy as np
import pytest
import torch
from PIL import Image

from lsa_cli.data import check_inputs, open_data, stratified_subset
from lsa_cli.errors import DataError, UsageError


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
        ({"x": np.zeros((3, 2)), "y": np.zeros(4, int)}, "one label a sample"),
        ({"x": np.zeros((3, 2)), "y": np.array([0, -1, 2])}, "label of sample 1 is -1"),
        ({"x": np.zeros((0, 2)), "y": np.zeros(0, int)}, "no samples"),
        ({"x": np.zeros((2, 2)), "y": np.array([0.5, 1])}, "whole class numbers"),
        ({"x": np.zeros((2, 2)), "y": np.array(["cat", "dog"])}, "labels are <U3; give whole class numbers"),
        ({"x": np.zeros((2, 2)), "y": np.array([0, np.nan])}, "whole class numbers"),
        ({"x": np.zeros((2, 2)), "y": np.array([[0], [1]])}, "one label a sample"),
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
        ("none", UsageError, "SOURCE:LOCATION"),
        ("torchvision:MNISTT?root=.", UsageError, "did you mean"),
        ("torchvision:MNIST?root=/nowhere", DataError, "downloads nothing"),
        ("torchvision:MNIST?rot=/nowhere", UsageError, "did you mean 'root'"),
    ],
)
def test_bad_specs(spec, error, says):
    with pytest.raises(error, match=says):
        open_data(spec)


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    for name, count in (("cat", 3), ("dog", 2), ("fox", 0)):
        (tmp_path / "test" / name).mkdir(parents=True)
        for i in range(count):
            size = (10, 8) if name == "cat" else (6, 6)
            pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "test" / name / f"{i}.png")
    return tmp_path


def test_image_folders(folder):
    data = open_data(f"imagefolder:{folder}", split="test", channels=3, size=(8, 8))
    assert data.class_names == ("cat", "dog", "fox")
    assert data.labels.tolist() == [0, 0, 0, 1, 1]
    assert data.read(np.arange(5)).shape == (5, 3, 8, 8)
    assert data.transform == "resized to 8x8"
    grey = open_data(f"imagefolder:{folder}/test?size=6", channels=1)
    assert grey.read(np.arange(5)).shape == (5, 1, 6, 6)
    native = open_data(f"imagefolder:{folder}/test?size=native", channels=3)
    assert native.read(np.arange(2)).shape == (2, 3, 10, 8)
    with pytest.raises(DataError, match="differ in size"):
        native.read(np.arange(5))


def test_a_damaged_image_is_named(folder):
    (folder / "test" / "cat" / "1.png").write_bytes(b"\x89PNG not really")
    data = open_data(f"imagefolder:{folder}/test", size=(8, 8))
    with pytest.raises(DataError, match=r"cat/1\.png cannot be read"):
        data.read(np.arange(3))


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
    with pytest.raises(DataError, match="gave int"):
        open_data(f"{file}:wrong")
    with pytest.raises(DataError, match="OSError: no disk"):
        open_data(f"{file}:fails")


def test_subsets_are_stratified_and_decided_by_the_seed():
    labels = np.repeat([0, 1, 2, 3], [500, 300, 150, 50])
    chosen = stratified_subset(labels, 100, 0)
    assert np.bincount(labels[chosen]).tolist() == [50, 30, 15, 5]
    assert np.array_equal(chosen, np.sort(chosen))
    assert len(np.unique(chosen)) == 100
    assert np.array_equal(chosen, stratified_subset(labels, 100, 0))
    assert not np.array_equal(chosen, stratified_subset(labels, 100, 1))
    assert len(stratified_subset(labels, 7, 0)) == 7
    assert len(stratified_subset(labels, 1000, 0)) == 1000


def test_inputs_are_held_to_their_range():
    rows = np.array([7, 8])
    x = torch.tensor([[0.5, 1.00005], [-0.00005, 0.2]])
    assert check_inputs(x, rows, (0.0, 1.0), "d").tolist() == [[0.5, 1.0], [0.0, pytest.approx(0.2)]]
    with pytest.raises(DataError, match="sample 8 holds NaN or infinity"):
        check_inputs(torch.tensor([[0.5], [torch.inf]]), rows, None, "d")
    with pytest.raises(DataError, match="undo the normalisation"):
        check_inputs(torch.tensor([[0.5], [-1.0]]), rows, (0.0, 1.0), "d")
    with pytest.raises(DataError, match="divide by 255"):
        check_inputs(torch.tensor([[0.5], [200.0]]), rows, (0.0, 1.0), "d")
    assert check_inputs(torch.tensor([[5.0], [-3.0]]), rows, None, "d").tolist() == [[5.0], [-3.0]]


def test_torchvision_data_on_disk(data_root):
    data = open_data(f"torchvision:mnist?root={data_root}", channels=1, size=(28, 28))
    assert len(data) == 10_000
    assert data.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert data.read(np.array([0])).shape == (1, 1, 28, 28)
    assert len(open_data(f"torchvision:FashionMNIST?root={data_root}&split=train", channels=1)) == 60_000


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.float64, bool])
def test_labels_of_any_type_that_are_whole_numbers_are_taken(tmp_path, dtype):
    data = open_data(npz(tmp_path, x=np.zeros((4, 2)), y=np.array([0, 1, 1, 0], dtype=dtype)))
    assert data.labels.astype(int).tolist() == [0, 1, 1, 0]


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


@pytest.mark.parametrize("limit", [1, 7, 33, 99, 100, 999])
def test_a_subset_takes_each_class_within_one_of_its_share(limit):
    labels = np.random.default_rng(1).choice(7, 1000, p=[0.4, 0.2, 0.15, 0.1, 0.08, 0.05, 0.02])
    chosen = stratified_subset(labels, limit, 0)
    assert len(chosen) == len(np.unique(chosen)) == limit
    share = np.bincount(labels, minlength=7) * limit / 1000
    assert (np.abs(np.bincount(labels[chosen], minlength=7) - share) < 1).all()


def test_a_subset_follows_the_labels_not_the_order_of_the_files():
    """The same classes in another order give the same number of each."""
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    shuffled = np.random.default_rng(0).permutation(labels)
    for order in (labels, shuffled):
        assert np.bincount(order[stratified_subset(order, 10, 0)]).tolist() == [5, 3, 2]
