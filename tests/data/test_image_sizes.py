"""The pixels a network is shown: those of torchvision's own transforms, and nothing that the report does not say."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models

from lsa_cli.data import ImageSize, open_data, square_size, torchvision_size, usual_size
from lsa_cli.errors import DataError, UsageError


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """JPEGs of many sizes, wide, tall, small and exact, smooth enough to be compressed like photographs."""
    root = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    sizes = [(500, 375), (375, 500), (300, 231), (90, 120), (256, 256), (224, 224), (641, 480), (1000, 251)]
    for number, (width, height) in enumerate(sizes):
        (root / "ab"[number % 2]).mkdir(exist_ok=True)
        coarse = generator.integers(0, 256, (9, 12, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(
            root / "ab"[number % 2] / f"{number}.jpg", quality=90
        )
    return root


PRESETS = [
    ("resnet18", models.ResNet18_Weights.IMAGENET1K_V1),
    ("resnet50", models.ResNet50_Weights.IMAGENET1K_V2),
    ("efficientnet_b0", models.EfficientNet_B0_Weights.IMAGENET1K_V1),
    ("inception_v3", models.Inception_V3_Weights.IMAGENET1K_V1),
    ("vit_b_16", models.ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1),
]


@pytest.mark.parametrize(("name", "weights"), PRESETS, ids=[name for name, _ in PRESETS])
def test_pixels_are_those_of_torchvisions_preset(photos, name, weights):
    preset = weights.transforms()
    preset.mean, preset.std = [0.0], [1.0]  # the network normalises
    size = torchvision_size(name, weights.url.rpartition("/")[2])
    assert size.origin == f"torchvision's {weights}"
    data = open_data(f"imagefolder:{photos}", channels=3, size=size)
    files = sorted(photos.glob("*/*.jpg"))
    read = data.read(np.arange(len(files)))
    for file, image in zip(files, read, strict=True):
        assert torch.equal(image, preset(Image.open(file).convert("RGB"))), file.name


def test_which_weights_decide_the_size():
    assert torchvision_size("resnet50", "resnet50-11ad3fa6.pth").resize == 232
    first = torchvision_size("resnet50", "mine.pt")
    assert (first.resize, first.height, first.interpolation) == (256, 224, "bilinear")
    assert first.origin == (
        "torchvision's ResNet50_Weights.IMAGENET1K_V1 (the first of 2; the file's name is none of theirs)"
    )
    assert torchvision_size("resnet18", "mine.pt").origin == "torchvision's ResNet18_Weights.IMAGENET1K_V1"
    assert torchvision_size("no_such_network", "mine.pt") is None
    assert torchvision_size("fcn_resnet50", "mine.pt") is None


def test_every_classifier_of_torchvision_has_a_size():
    for name in models.list_models(module=models):
        size = torchvision_size(name, "")
        assert size is not None, name
        assert size.resize >= size.height == size.width


def test_sizes_in_words():
    assert square_size(224) == ImageSize(224, 224, 256, "bilinear", "--input-size 224", explicit=True)
    assert square_size(32) == ImageSize(32, 32, None, "bilinear", "--input-size 32", explicit=True)
    assert usual_size(96, 128, "x").resize is None
    assert square_size(299).resize == 342
    assert (
        usual_size(224, 224, "the checkpoint").text
        == "shorter side resized to 256 (bilinear), centre 224 x 224 cropped, by the checkpoint"
    )
    with pytest.raises(UsageError, match="at least 1 x 1 pixels, not 0 x 0"):
        square_size(0)
    with pytest.raises(UsageError, match="cannot crop"):
        ImageSize(224, 224, 200)


def test_the_order_and_the_number_of_threads_change_nothing(photos):
    size = square_size(70)
    one = open_data(f"imagefolder:{photos}", channels=3, size=size, threads=1).read
    many = open_data(f"imagefolder:{photos}", channels=3, size=size, threads=5).read
    together = one(np.arange(8))
    assert torch.equal(many(np.arange(8)), together)
    order = np.array([5, 0, 7, 5, 2])
    assert torch.equal(many(order), together[torch.from_numpy(order)])
    assert many(np.array([3])).is_contiguous()


def test_images_of_the_networks_size_are_left_alone(tmp_path):
    (tmp_path / "a").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 96, 96, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "a" / f"{number}.png")
    data = open_data(f"imagefolder:{tmp_path}", channels=3, size=usual_size(96, 96, "the checkpoint"))
    assert "images are 96 x 96, left as they are" in data.transform
    np.testing.assert_array_equal(
        data.read(np.arange(3)).numpy(), pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255
    )
    asked = open_data(f"imagefolder:{tmp_path}", channels=3, size=square_size(96))
    assert "shorter side resized to 110 (bilinear), centre 96 x 96 cropped, by --input-size 96" in asked.transform


def test_images_of_several_sizes_need_one(photos, tmp_path):
    with pytest.raises(DataError, match=r"images differ in size \(\d+ x \d+ and \d+ x \d+\); .* --input-size N"):
        open_data(f"imagefolder:{photos}", channels=3)
    (tmp_path / "a").mkdir()
    for number in range(40):  # more than are looked at
        Image.new("RGB", (9, 8) if number == 21 else (8, 8)).save(tmp_path / "a" / f"{number:02}.png")
    data = open_data(f"imagefolder:{tmp_path}", channels=3)
    assert data.read(np.arange(20)).shape == (20, 3, 8, 8)
    with pytest.raises(DataError, match=r"images differ in size \(8 x 8 and 8 x 9\)"):
        data.read(np.arange(20, 25))
