"""Image files from folders, tables, shards and other libraries."""

import io
import json
import tarfile
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from lsa_cli.auditing.network import match_classes
from lsa_cli.data import open_data, square_size, usual_size
from lsa_cli.data.factories import from_object
from lsa_cli.errors import DataError, SplitError, UsageError


def picture(seed, mode="RGB", size=(8, 6)):
    """An image of noise; size is (width, height)."""
    channels = {"RGB": 3, "L": 1, "RGBA": 4, "LA": 2, "CMYK": 4}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    return Image.fromarray(pixels.squeeze(), mode) if mode == "CMYK" else Image.fromarray(pixels.squeeze())


def content(image, form="PNG"):
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


def unit(image):
    pixels = np.asarray(image, dtype=np.float32) / 255
    return torch.from_numpy(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1).copy())


def numbered_folders(root, names):
    """A folder of one image for each name."""
    for name in names:
        (root / name).mkdir(parents=True)
        picture(0, size=(6, 6)).save(root / name / "0.png")
    return f"imagefolder:{root}"


def folder_of(root, images):
    """One class, one PNG (TIFF for CMYK) for each image."""
    (root / "one").mkdir(parents=True)
    for number, image in enumerate(images):
        image.save(root / "one" / f"{number:02}.{'tif' if image.mode == 'CMYK' else 'png'}")
    return f"imagefolder:{root}"


# ---- folders -------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    for name, count in (("cat", 3), ("dog", 2), ("fox", 0)):
        (tmp_path / "test" / name).mkdir(parents=True)
        for number in range(count):
            picture(number, size=(8, 10) if name == "cat" else (6, 6)).save(tmp_path / "test" / name / f"{number}.png")
    return tmp_path


def test_folders_that_are_numbered_are_in_the_order_of_numbers(tmp_path):
    names = [str(number) for number in range(12)]
    spec = numbered_folders(tmp_path / "all", names)
    data = open_data(spec, channels=3)
    assert data.class_names == tuple(names)
    assert [data.class_names[label] for label in data.labels] == sorted(names)  # the images come in the order of paths
    as_text = open_data(f"{spec}?order=text", channels=3)
    assert as_text.class_names == tuple(sorted(names))
    assert as_text.labels.tolist() == list(range(12))
    mixed = numbered_folders(tmp_path / "mixed", ["2", "10", "x"])
    assert open_data(mixed, channels=3).class_names == ("10", "2", "x")
    with pytest.raises(UsageError, match="order=size"):
        open_data(f"{spec}?order=size", channels=3)


@pytest.mark.parametrize(
    ("names", "outputs"),
    [(["0", "3", "11"], [0, 3, 11]), (["00", "01", "10"], [0, 1, 10]), ([str(k + 1) for k in range(12)], range(12))],
)
def test_a_folder_named_by_a_number_is_that_output(tmp_path, names, outputs):
    """By number the name decides, with gaps too; names from 1 to the number of classes count from 1."""
    data, notes = open_data(numbered_folders(tmp_path, names), channels=3), []
    labels, _ = match_classes(data, None, 12, "number", notes)
    assert sorted(labels.tolist()) == list(outputs)
    assert bool(notes) == ("12" in names)


def test_image_folders(folder):
    data = open_data(f"imagefolder:{folder}", split="test", channels=3, size=usual_size(8, 8, "the checkpoint"))
    assert data.class_names == ("cat", "dog", "fox")
    assert data.labels.tolist() == [0, 0, 0, 1, 1]
    assert data.read(np.arange(5)).shape == (5, 3, 8, 8)
    assert data.transform.endswith("resized to 8 x 8 (bilinear), by the checkpoint")
    assert (data.name, data.called, data.split) == ("", folder.name, "test")
    native = open_data(f"imagefolder:{folder}/test/../test?split=", channels=3, size=square_size(6))
    assert native.read(np.arange(2)).shape == (2, 3, 6, 6)


def test_folders_of_splits_are_not_taken_for_classes(folder):
    (folder / "train" / "cat").mkdir(parents=True)
    for number in range(4):
        picture(number).save(folder / "train" / "cat" / f"{number}.png")
    (folder / "train" / "dog").mkdir()
    spec = f"imagefolder:{folder}"
    data = open_data(spec, size=square_size(6))
    assert (data.split, len(data), data.class_names) == ("test", 5, ("cat", "dog", "fox"))
    assert len(open_data(spec, split="train")) == 4
    with pytest.raises(SplitError, match=r"there is no folder .*val; it must hold one folder of images"):
        open_data(spec, split="val")
    (folder / "bird").mkdir()  # now they can only be classes
    assert open_data(spec, size=square_size(6)).class_names == ("bird", "test", "train")


def test_a_damaged_image_is_named(folder):
    damaged = folder / "test" / "cat" / "1.png"
    whole = damaged.read_bytes()
    damaged.write_bytes(b"\x89PNG not really")
    with pytest.raises(DataError, match=r"cat/1\.png cannot be read as an image: unknown image format"):
        open_data(f"imagefolder:{folder}/test", size=square_size(8))
    damaged.write_bytes(whole[: len(whole) // 2])  # the head is whole, the pixels are not
    data = open_data(f"imagefolder:{folder}/test", size=square_size(8))
    with pytest.raises(DataError, match=r"cat/1\.png cannot be read as an image: .*truncated.*; remove or repair it"):
        data.read(np.arange(3))


def test_postscript_is_no_image(tmp_path):
    """Pillow would start Ghostscript on it, whatever the file is called."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EOF\n")
    with pytest.raises(DataError, match="unknown image format"):
        open_data(f"imagefolder:{tmp_path}", channels=3, size=square_size(8))


def test_the_size_option_is_gone(folder):
    with pytest.raises(UsageError, match="unknown option of imagefolder 'size'"):
        open_data(f"imagefolder:{folder}?size=8")


# ---- grey and colour -----------------------------------------------------------------------------------


def test_grey_images_for_a_network_of_colour(tmp_path):
    images = [picture(number, "L") for number in range(3)]
    spec = folder_of(tmp_path, images)
    with pytest.raises(DataError, match=r"are grey and the network takes colour; add \?mode=rgb to --data"):
        open_data(spec, channels=3)
    read = open_data(f"{spec}?mode=rgb", channels=3).read(np.arange(3))
    assert torch.equal(read, torch.stack([unit(image.convert("RGB")) for image in images]))
    data = open_data(spec)
    assert torch.equal(data.read(np.arange(3)), torch.stack([unit(image) for image in images]))
    assert data.transform == "grey, alpha dropped; images are 6 x 8, left as they are"


def test_colour_images_for_a_network_of_grey(tmp_path):
    images = [picture(0, "L"), picture(1)]
    spec = folder_of(tmp_path, images)
    with pytest.raises(DataError, match=r"are in colour and the network takes grey; add \?mode=gray to --data"):
        open_data(spec, channels=1)
    data = open_data(f"{spec}?mode=gray", channels=1)
    assert torch.equal(data.read(np.arange(2)), torch.stack([unit(image.convert("L")) for image in images]))
    assert data.transform.startswith("grey, colour images turned grey by luma")


def test_some_grey_images_among_colour_are_converted_and_said(tmp_path):
    spec = folder_of(tmp_path, [picture(0), picture(1, "L"), picture(2)])
    data = open_data(spec, channels=3)
    assert data.transform.startswith(
        "RGB, images of other modes converted (1 of 3 checked images are grey), alpha dropped"
    )
    assert torch.equal(data.read(np.array([1]))[0], unit(picture(1, "L").convert("RGB")))
    with pytest.raises(DataError, match=r"1 of 3 checked images are grey, the others in colour; add \?mode=rgb or"):
        open_data(spec)


def test_an_image_of_another_colour_that_was_not_looked_at(tmp_path):
    spec = folder_of(tmp_path, [picture(number, "RGB" if number == 21 else "L") for number in range(40)])
    data = open_data(spec, channels=1)
    assert data.read(np.arange(20)).shape == (20, 1, 6, 8)
    with pytest.raises(DataError, match=r"21\.png is colour and others are grey; add \?mode=gray"):
        data.read(np.arange(20, 25))


def test_alpha_palette_and_cmyk_become_rgb_as_torchvision_has_it(tmp_path):
    palette = picture(1).quantize(16)
    palette.info["transparency"] = bytes(range(16))
    images = [picture(0, "RGBA"), palette, picture(2, "CMYK"), picture(3, "LA")]
    spec = folder_of(tmp_path, images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = open_data(spec, channels=3, threads=1).read(np.arange(4))
    for row, file in enumerate(sorted((tmp_path / "one").iterdir())):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert torch.equal(read[row], unit(Image.open(file).convert("RGB"))), file


def test_images_of_sixteen_bits_are_refused(tmp_path):
    (tmp_path / "a").mkdir()
    for number in range(40):
        pixels = np.full((6, 8), 200, np.uint16 if number == 21 else np.uint8)
        Image.fromarray(pixels).save(tmp_path / "a" / f"{number:02}.png")
    data = open_data(f"imagefolder:{tmp_path}", channels=1)
    with pytest.raises(DataError, match=r"21\.png holds pixels of Pillow's mode I;16, which is not 8 bits"):
        data.read(np.arange(20, 25))
    Image.fromarray(np.zeros((6, 8), np.uint16)).save(tmp_path / "a" / "00.png")
    with pytest.raises(DataError, match=r"00\.png holds pixels of Pillow's mode I;16"):
        open_data(f"imagefolder:{tmp_path}?mode=gray", channels=1)


# ---- tables --------------------------------------------------------------------------------------------


def table_of(root, text, names=("a", "b", "c")):
    (root / "pictures").mkdir()
    for number, name in enumerate(names):
        picture(number).save(root / "pictures" / f"{name}.png")
    (root / "table.csv").write_text(text, encoding="utf-8")
    return f"csv:{root}/table.csv"


def test_a_table_with_class_numbers(tmp_path):
    spec = table_of(tmp_path, "\ufeffid,Image Path,label\n7,pictures/a.png,2\n8,pictures/c.png,0\n")
    data = open_data(spec, channels=3)
    assert (data.labels.tolist(), data.class_names) == ([2, 0], None)
    assert torch.equal(data.read(np.array([1, 0])), torch.stack([unit(picture(2)), unit(picture(0))]))


def test_a_table_with_class_names(tmp_path):
    spec = table_of(tmp_path, "file,kind\na,wolf\nb,fox\nc,wolf\n")
    data = open_data(f"{spec}?label=kind&root={tmp_path}/pictures&ext=png")
    assert (data.labels.tolist(), data.class_names) == ([1, 0, 1], ("fox", "wolf"))


def test_splits_of_a_table(tmp_path):
    text = "file,label,split\na.png,0,train\nb.png,1,test\nc.png,0,test\n"
    spec = table_of(tmp_path, text) + f"?root={tmp_path}/pictures"
    assert (open_data(spec).labels.tolist(), open_data(spec).split) == ([1, 0], "test")
    assert len(open_data(spec, split="train")) == 1
    with pytest.raises(DataError, match="no split 'val'; there are test, train"):
        open_data(spec, split="val")


@pytest.mark.parametrize(
    ("text", "query", "error", "says"),
    [
        (
            "file,label\na.png,0\nz.png,1\n",
            "",
            DataError,
            r"2 of 2 image files are missing, first .*a\.png; .*root=DIR",
        ),
        ("file,image,label\n", "", UsageError, "file and image could all be the path; add .*path=NAME"),
        ("who,label\n", "", UsageError, "none is recognised as the path; .*one of who, label"),
        ("file,label\n", "?path=fil", UsageError, "there is no 'fil' for path=; there are file, label"),
        ("file,x\n", "", UsageError, "none is recognised as the label"),
        ("file,label\npictures/a.png,\n", "", DataError, "line 2 has no label"),
        ("file,label\n,1\n", "", DataError, "line 2 names no image file"),
        ("file,label\npictures/a.png,-1\n", "", DataError, "the label of sample 0 is -1"),
        ("file,label\n", "", DataError, "holds no images"),
        ("", "", UsageError, "none is recognised as the path; .* one of none"),
        ("file,label\npictures/a.png,1\n", "?split=test", SplitError, "no column 'split' in which to find 'test'"),
        ("file,label\n", "?lable=x", UsageError, "did you mean 'label'"),
    ],
)
def test_bad_tables(tmp_path, text, query, error, says):
    with pytest.raises(error, match=says):
        open_data(table_of(tmp_path, text) + query)


def test_a_table_that_is_no_text(tmp_path):
    (tmp_path / "table.csv").write_bytes(b"\xff\xfe\x00file")
    with pytest.raises(DataError, match="comma-separated"):
        open_data(f"csv:{tmp_path}/table.csv")
    with pytest.raises(DataError, match="there is no file"):
        open_data(f"csv:{tmp_path}/none.csv")


# ---- shards --------------------------------------------------------------------------------------------


def shard(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


@pytest.fixture
def shards(tmp_path):
    for number in range(3):
        members = []
        for row in range(4):
            seed = 4 * number + row
            members += [
                (f"part/{seed:04}.png", content(picture(seed))),
                (f"part/{seed:04}.cls", str(seed % 5).encode() + b"\n"),
                (
                    f"part/{seed:04}.json",
                    json.dumps({"label": "even" if seed % 2 == 0 else "odd", "id": seed}).encode(),
                ),
            ]
        shard(tmp_path / f"set-{number:03}.tar", members)
    return tmp_path


@pytest.mark.parametrize("pattern", ["set-{000..002}.tar", "set-*.tar", "set-00{0,1,2}.tar"])
def test_shards_are_read_by_index(shards, pattern):
    data = open_data(f"webdataset:{shards}/{pattern}", channels=3)
    assert data.labels.tolist() == [row % 5 for row in range(12)]
    order = np.array([11, 0, 5])
    assert torch.equal(data.read(order), torch.stack([unit(picture(row)) for row in order]))


def test_labels_of_shards(shards):
    data = open_data(f"webdataset:{shards}/set-000.tar?label=json")
    assert (data.labels.tolist(), data.class_names) == ([0, 1, 0, 1], ("even", "odd"))
    assert open_data(f"webdataset:{shards}/set-001.tar?label=json&key=id").labels.tolist() == [4, 5, 6, 7]
    shard(shards / "text.tar", [("a.jpg", content(picture(0), "JPEG")), ("a.txt", b"owl")])
    assert open_data(f"webdataset:{shards}/text.tar").class_names == ("owl",)


def test_the_webdataset_package_reads_the_same(shards):
    webdataset = pytest.importorskip("webdataset")
    theirs = webdataset.WebDataset(f"{shards}/set-{{000..002}}.tar", shardshuffle=False).decode("pil")
    ours = open_data(f"webdataset:{shards}/set-{{000..002}}.tar", channels=3)
    count = 0
    for row, sample in enumerate(theirs):
        assert sample["cls"] == ours.labels[row]
        assert torch.equal(unit(sample["png"]), ours.read(np.array([row]))[0])
        count += 1
    assert count == len(ours) == 12


PNG = content(picture(0))


@pytest.mark.parametrize(
    ("members", "query", "error", "says"),
    [
        ([("a.png", PNG), ("a.pyd", b"x")], "", DataError, r"no label \(it holds .png, .pyd\).*pickles are not read"),
        ([("a.png", PNG), ("a.pyd", b"x")], "?label=pyd", UsageError, "label=pyd is a pickle, which can run any code"),
        ([("a.png", PNG), ("a.cls", b"0")], "?label=npy", UsageError, "must end in cls, json, txt"),
        ([("a.png", PNG), ("a.cls", b"0")], "?label=txt", DataError, "has no label .txt"),
        ([("a.cls", b"0")], "", DataError, r"a in .*bad\.tar has no image"),
        ([("a.png", PNG), ("a.jpg", PNG), ("a.cls", b"0")], "", DataError, "several images .*image=ENDING"),
        ([("a.png", PNG), ("a.json", b"1"), ("a.txt", b"1")], "", DataError, "has several labels"),
        ([("a.png", PNG), ("a.json", b"{")], "", DataError, "cannot be read"),
        ([("a.png", PNG), ("a.json", b"[1]")], "", DataError, "is a list; it must be one number"),
        ([("a.png", PNG), ("a.json", b'{"x": 1}')], "", UsageError, "none is recognised as the key.*key=NAME"),
        ([("a.png", PNG), ("a.cls", b"")], "", DataError, "has no label"),
        ([("a.png", PNG), ("a.png", PNG)], "", DataError, "two members .png"),
        ([("a.png", PNG), ("a.cls", b"0"), ("b.png", PNG)], "", DataError, "b in .* has no label .cls"),
        ([], "", DataError, "no samples"),
        ([("a.png", PNG), ("a.cls", b"0")], "?split=test", SplitError, "shards have no splits"),
    ],
)
def test_bad_shards(tmp_path, members, query, error, says):
    shard(tmp_path / "bad.tar", members)
    with pytest.raises(error, match=says):
        open_data(f"webdataset:{tmp_path}/bad.tar{query}")


def test_files_that_are_no_shards(tmp_path):
    shard(tmp_path / "packed.tar", [("a.png", PNG), ("a.cls", b"0")], "w:gz")
    with pytest.raises(DataError, match=r"cannot be read as a tar file.*gunzip"):
        open_data(f"webdataset:{tmp_path}/packed.tar")
    for name in ("none.tar", "none-*.tar", "none-{0..3}.tar"):
        with pytest.raises(DataError, match=r"there is no shard .*none"):
            open_data(f"webdataset:{tmp_path}/{name}")


# ---- other libraries -----------------------------------------------------------------------------------


@pytest.fixture
def hugging(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features({"img": datasets.Image(), "kind": datasets.ClassLabel(names=["owl", "ant"])})
    made = {
        split: datasets.Dataset.from_dict(
            {"img": [picture(row) for row in rows], "kind": [row % 2 for row in rows]}, features=features
        )
        for split, rows in (("train", range(10, 13)), ("test", range(4)))
    }
    return datasets, datasets.DatasetDict(made), tmp_path


def test_hugging_face_from_disk(hugging, capfd):
    _, made, root = hugging
    made.save_to_disk(root / "saved-set")
    capfd.readouterr()
    data = open_data(f"hf:{root}/saved-set", channels=3)
    assert (data.labels.tolist(), data.class_names, data.split) == ([0, 1, 0, 1], ("owl", "ant"), "test")
    assert torch.equal(data.read(np.array([3, 0])), torch.stack([unit(picture(3)), unit(picture(0))]))
    assert (data.name, data.called) == ("", "saved-set")
    assert len(open_data(f"hf:{root}/saved-set?split=train")) == 3
    with pytest.raises(DataError, match="no split 'val'; there are train, test"):
        open_data(f"hf:{root}/saved-set", split="val")
    assert capfd.readouterr() == ("", "")


def test_hugging_face_keeps_the_selection_and_drops_the_format(hugging):
    _, made, root = hugging
    made["test"].select([2, 1]).with_format("numpy").save_to_disk(root / "part")
    data = open_data(f"hf:{root}/part")
    assert data.labels.tolist() == [0, 1]
    assert torch.equal(data.read(np.array([0]))[0], unit(picture(2)))


def test_hugging_face_from_a_folder_of_files(hugging, capfd):
    _, made, root = hugging
    (root / "parquet").mkdir()
    made["test"].to_parquet(root / "parquet" / "test-00000.parquet")
    capfd.readouterr()
    data = open_data(f"hf:{root}/parquet", channels=3)
    assert data.class_names == ("owl", "ant")
    assert torch.equal(data.read(np.array([2]))[0], unit(picture(2)))
    assert capfd.readouterr() == ("", "")


def test_a_parquet_file_of_images(hugging):
    _, made, root = hugging
    made["test"].to_parquet(root / "test-00000.parquet")
    data = open_data(f"{root}/test-00000.parquet", channels=3)
    assert (data.class_names, data.split) == (("owl", "ant"), "test")
    assert torch.equal(data.read(np.array([2]))[0], unit(picture(2)))
    pandas = pytest.importorskip("pandas")
    rows = pandas.read_parquet(root / "test-00000.parquet")  # without the note that a column holds images
    rows.to_parquet(root / "plain.parquet")
    plain = open_data(f"{root}/plain.parquet?label=kind", channels=3)
    assert torch.equal(plain.read(np.array([2]))[0], unit(picture(2)))
    assert plain.labels.tolist() == [0, 1, 0, 1]


def test_hugging_face_runs_no_script_of_the_data(hugging):
    _, _, root = hugging
    (root / "evil").mkdir()
    (root / "evil" / "evil.py").write_text(f"open({str(root / 'ran')!r}, 'w')\n")
    with pytest.raises(DataError, match="cannot be opened"):
        open_data(f"hf:{root}/evil")
    assert not (root / "ran").exists()


def test_columns_of_hugging_face(hugging):
    datasets, _, root = hugging
    table = {"a": [picture(0)], "b": [picture(1)], "label": ["owl"], "n": [3]}
    features = {
        "a": datasets.Image(),
        "b": datasets.Image(),
        "label": datasets.Value("string"),
        "n": datasets.Value("int64"),
    }
    datasets.Dataset.from_dict(table, features=datasets.Features(features)).save_to_disk(root / "two")
    with pytest.raises(UsageError, match=r"a and b could all be the image; add .*image=NAME"):
        open_data(f"hf:{root}/two")
    data = open_data(f"hf:{root}/two?image=b")
    assert (data.class_names, data.labels.tolist()) == (("owl",), [0])
    assert torch.equal(data.read(np.array([0]))[0], unit(picture(1)))
    assert open_data(f"hf:{root}/two?image=b&label=n").labels.tolist() == [3]
    with pytest.raises(DataError, match="the column n is not an image"):
        open_data(f"hf:{root}/two?image=n")
    with pytest.raises(UsageError, match="there is no 'c' for label="):
        open_data(f"hf:{root}/two?image=a&label=c")


def test_hugging_face_without_the_hub(hugging, monkeypatch):
    datasets, _, root = hugging
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"hf:no-one/no-set cannot be opened: .*a name needs access to the hub"):
        open_data("hf:no-one/no-set")
    (root / "empty").mkdir()
    with pytest.raises(DataError, match="cannot be opened"):
        open_data(f"hf:{root}/empty")


def test_torchvision_data_on_disk(data_root):
    data = open_data(f"torchvision:mnist?root={data_root}", channels=1, size=usual_size(224, 224, "weights"))
    assert len(data) == 10_000
    assert data.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert data.read(np.array([0])).shape == (1, 1, 28, 28)
    assert data.transform == "grey, alpha dropped; images are 28 x 28, left as they are"
    assert len(data.class_names) == 10
    assert open_data(f"torchvision:mnist?root={data_root}", size=square_size(32)).read(np.arange(2)).shape[2:] == (
        32,
        32,
    )
    assert len(open_data(f"torchvision:FashionMNIST?root={data_root}&split=train", channels=1)) == 60_000
    with pytest.raises(DataError, match=r"grey and the network takes colour; add &mode=rgb"):
        open_data(f"torchvision:mnist?root={data_root}", channels=3)


def test_torchvision_data_of_files(tmp_path):
    """EuroSAT is a folder of images: decoded in parallel, and brought to the size as any file is."""
    for name in ("Forest", "River"):
        (tmp_path / "eurosat" / "2750" / name).mkdir(parents=True)
        picture(0, size=(64, 64)).save(tmp_path / "eurosat" / "2750" / name / "0.png")
    data = open_data(f"torchvision:EuroSAT?root={tmp_path}", channels=3, size=usual_size(32, 32, "the checkpoint"))
    assert data.class_names == ("Forest", "River")
    assert data.read(np.arange(2)).shape == (2, 3, 32, 32)


def test_downloads_are_asked_for(tmp_path):
    with pytest.raises(DataError, match=r"Dataset not found.*; put its files there, or add &download=true"):
        open_data(f"torchvision:MNIST?root={tmp_path}")
    with pytest.raises(UsageError, match="torchvision does not download ImageNet"):
        open_data(f"torchvision:ImageNet?root={tmp_path}&download=true")
    with pytest.raises(UsageError, match="download=yes must be true or false"):
        open_data(f"torchvision:MNIST?root={tmp_path}&download=yes")


def test_a_data_set_object_of_hugging_face_and_a_parquet_file_with_bytes(tmp_path):
    library = pytest.importorskip("datasets", reason="datasets is not installed")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    import pyarrow

    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 5, 3), dtype=np.uint8)
    wanted = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    labels, images = [0, 2, 1, 0, 1, 2], [Image.fromarray(image) for image in pixels]
    features = library.Features(image=library.Image(), label=library.ClassLabel(names=["a", "b", "c"]))
    given = from_object(library.Dataset.from_dict({"image": images, "label": labels}, features=features), "object")
    files = [io.BytesIO() for _ in images]
    for image, file in zip(images, files, strict=True):
        image.save(file, "png")
    parquet.write_table(
        pyarrow.table({"image": [f.getvalue() for f in files], "label": labels}), tmp_path / "a.parquet"
    )
    stored = open_data(str(tmp_path / "a.parquet"))
    assert open_data(str(tmp_path)).labels.tolist() == labels  # the folder, as it is downloaded from a hub
    assert given.class_names == ("a", "b", "c")
    for data in (given, stored):
        assert data.labels.tolist() == labels
        torch.testing.assert_close(data.read(np.arange(6)), wanted)
