"""The common corruptions: closed forms, the authors' strengths, and the authors' own results on photographs."""

import colorsys
import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchvision.io import ImageReadMode, decode_image, decode_jpeg, encode_jpeg
from torchvision.transforms.v2 import functional as images

from lsa_cli.attacks import CORRUPTIONS, NOISES, uniform_like
from lsa_cli.attacks.corruption import glass_blur
from lsa_cli.attacks.image_transforms import (
    correlate,
    disk,
    enlarged,
    gaussian_blur,
    plasma,
    poisson,
    scattered,
    streak,
)
from lsa_cli.attacks.randomness import per_sample
from lsa_cli.errors import UsageError

# torchvision's JPEG is announced to move to torchcodec.
pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning")

# Mean over images of the root mean square change, by severity, of 20 ImageNet photos (224 x 224, as `photos` cuts
# them), from the package imagecorruptions 1.1.2; its elastic transform is not the one published, so that row is from
# the formula of ImageNet-C. Their pixels are cut to whole numbers, ours are not.
LARGE = {
    "gaussian_noise": (0.0782, 0.1152, 0.1668, 0.2273, 0.2988),
    "shot_noise": (0.0828, 0.1255, 0.1754, 0.2546, 0.3122),
    "impulse_noise": (0.0966, 0.1366, 0.1669, 0.2294, 0.2896),
    "defocus_blur": (0.0568, 0.0667, 0.0819, 0.0919, 0.1003),
    "glass_blur": (0.0668, 0.0651, 0.0969, 0.0909, 0.0967),
    "motion_blur": (0.0674, 0.0843, 0.1007, 0.1176, 0.1240),
    "zoom_blur": (0.0919, 0.1044, 0.1094, 0.1171, 0.1224),
    "snow": (0.1773, 0.2853, 0.2864, 0.3444, 0.3965),
    "frost": (0.2487, 0.2956, 0.3280, 0.3088, 0.3274),
    "fog": (0.1815, 0.2017, 0.2185, 0.2198, 0.2291),
    "brightness": (0.0839, 0.1667, 0.2415, 0.3070, 0.3594),
    "contrast": (0.1237, 0.1444, 0.1650, 0.1856, 0.1959),
    "elastic_transform": (0.1936, 0.2329, 0.1172, 0.1165, 0.1249),
    "pixelate": (0.0376, 0.0420, 0.0522, 0.0617, 0.0678),
    "jpeg_compression": (0.0368, 0.0413, 0.0443, 0.0522, 0.0605),
}
# The same for 20 images of CIFAR-10, with the strengths and formulas of CIFAR-10-C.
SMALL = {
    "gaussian_noise": (0.0395, 0.0587, 0.0776, 0.0870, 0.0963),
    "shot_noise": (0.0301, 0.0424, 0.0662, 0.0760, 0.0923),
    "impulse_noise": (0.0558, 0.0791, 0.0972, 0.1253, 0.1481),
    "defocus_blur": (0.0080, 0.0204, 0.0309, 0.0403, 0.0573),
    "glass_blur": (0.0893, 0.0885, 0.0810, 0.1273, 0.1179),
    "motion_blur": (0.0470, 0.0665, 0.0822, 0.0827, 0.0936),
    "zoom_blur": (0.0589, 0.0697, 0.0821, 0.0940, 0.1048),
    "snow": (0.0539, 0.1069, 0.1219, 0.1653, 0.2225),
    "frost": (0.1247, 0.1898, 0.1994, 0.1947, 0.1947),
    "fog": (0.0524, 0.1015, 0.1330, 0.1573, 0.1899),
    "brightness": (0.0429, 0.0844, 0.1245, 0.1628, 0.2335),
    "contrast": (0.0550, 0.1100, 0.1320, 0.1540, 0.1870),
    "elastic_transform": (0.1364, 0.1291, 0.1162, 0.1066, 0.0916),
    "pixelate": (0.0257, 0.0338, 0.0375, 0.0480, 0.0572),
    "jpeg_compression": (0.0299, 0.0370, 0.0396, 0.0420, 0.0452),
}
# Within this factor of the authors' change; the widest seen is 1.07 (frost, whose ice is not theirs).
FACTOR = 1.15
# The published strengths of these do not rise from each severity to the next: see the tables.
UNEVEN = {"glass_blur", "frost", "elastic_transform"}
NOT_RANDOM = {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"}

NAMES = CORRUPTIONS.names()
every = pytest.mark.parametrize("name", NAMES)


def corrupt(name, x, severity=3, bounds=(0.0, 1.0), **options):
    labels = torch.zeros(len(x), dtype=torch.long)
    return CORRUPTIONS.get(name)(bounds=bounds, severity=severity)(lambda z: z, x, labels, **options)


def clouds(count, channels, height, width, seed=0):
    """Colour images whose spectrum falls as that of photographs does, on a grid of 1/256."""
    generator = torch.Generator().manual_seed(seed)
    grey, colour = (torch.randn(count, c, height, width, generator=generator) for c in (1, channels))
    rows, columns = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)
    weight = 1 / (rows**2 + columns**2).sqrt().clamp_min(1 / max(height, width))
    x = torch.fft.irfft2(torch.fft.rfft2(grey + 0.5 * colour) * weight, s=(height, width))
    x = 0.5 + 0.2 * x / x.std((1, 2, 3), keepdim=True)
    return (x.clamp(0, 1) * 256).round() / 256


@pytest.fixture(scope="session")
def digits(samples):
    with np.load(samples / "mnist.npz") as data:
        return torch.from_numpy(data["x_test"][:100]).float()[:, None] / 255


def photos(data_root, pattern, size=None):
    files = sorted((data_root / "foolbox_samples").glob(pattern))
    if len(files) != 20:
        pytest.skip(f"no {pattern} under LSA_DATA_ROOT")
    pictures = [decode_image(str(file), ImageReadMode.RGB) for file in files]
    if size is not None:
        pictures = [images.center_crop(images.resize(p, [size], antialias=True), [size, size]) for p in pictures]
    return torch.stack(pictures).float() / 255


def test_there_are_the_fifteen_in_their_order():
    assert list(LARGE) == NAMES
    assert not set(NAMES) & set(NOISES.names())
    for name in NAMES:
        corruption = CORRUPTIONS.get(name)(bounds=(0.0, 1.0))
        assert (corruption.severity, corruption.kind, corruption.passes) == (3, "noise", 0)
        assert len(corruption.imagenet) == len(corruption.cifar) == 5


@every
@pytest.mark.parametrize(
    "shape", [(1, 28, 28), (3, 32, 32), (1, 8, 8), (3, 8, 8), (3, 9, 23), (3, 100, 64), (1, 65, 70), (2, 16, 12)]
)
@pytest.mark.parametrize("severity", [1, 5])
def test_shape_type_and_range_are_kept_and_something_changes(name, shape, severity):
    x = clouds(3, *shape)
    moved = corrupt(name, x, severity)
    assert moved.shape == x.shape
    assert moved.dtype == torch.float32
    assert torch.isfinite(moved).all()
    assert float(moved.min()) >= 0
    assert float(moved.max()) <= 1
    if shape[1:] == (8, 8) and name in {"zoom_blur", "impulse_noise"}:
        return  # at severity 1 a hundredth of 64 pixels may be none, and 1.06 times 8 rounds to 8
    assert all(not torch.equal(a, b) for a, b in zip(moved, x, strict=True))


@every
@pytest.mark.parametrize("count", [0, 1])
def test_batches_of_none_and_of_one(name, count):
    assert corrupt(name, clouds(2, 3, 16, 16)[:count]).shape == (count, 3, 16, 16)


@every
def test_another_range_gives_the_same_picture(name):
    """Up to rounding: the pixels are on a grid that both ranges hold exactly."""
    x = clouds(4, 3, 32, 32)
    wide = corrupt(name, 4 * x - 2, bounds=(-2.0, 2.0))
    torch.testing.assert_close(wide, 4 * corrupt(name, x) - 2, atol=1e-5, rtol=0)
    assert float(wide.min()) < 0


@every
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-0.4242, 2.8215)])
def test_black_and_white_stay_within_the_range(name, bounds):
    for end in bounds:
        moved = corrupt(name, torch.full((2, 1, 28, 28), end), 5, bounds)
        assert float(moved.min()) >= torch.tensor(bounds[0])
        assert float(moved.max()) <= torch.tensor(bounds[1])


@every
def test_the_seed_decides(name):
    x = clouds(3, 3, 32, 32)
    first = corrupt(name, x, seed=3)
    assert torch.equal(first, corrupt(name, x, seed=3))
    assert torch.equal(first, corrupt(name, x, seed=4)) == (name in NOT_RANDOM)


@every
def test_two_samples_get_different_corruptions(name):
    x = clouds(1, 3, 32, 32).expand(2, -1, -1, -1)
    first, second = corrupt(name, x)
    assert torch.equal(first, second) == (name in NOT_RANDOM)


@every
@pytest.mark.parametrize(("channels", "size"), [(1, (28, 28)), (3, (32, 20)), (3, (64, 72))])
@pytest.mark.parametrize("severity", [2, 5])
def test_a_sample_gets_the_same_result_in_any_batch(name, channels, size, severity):
    """1e-6: Fourier transforms and matrix products may round the last bit by batch size."""
    x = clouds(6, channels, *size)
    x[0] /= 4  # the largest rate of a batch must not decide how the others are drawn
    index = torch.tensor([10, 3, 77, 4, 1000, 0])
    whole = corrupt(name, x, severity, index=index)
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    shuffled = corrupt(name, x[order], severity, index=index[order])
    pieces = torch.cat([corrupt(name, x[i : i + 1], severity, index=index[i : i + 1]) for i in range(len(x))])
    torch.testing.assert_close(shuffled, whole[order], atol=1e-6, rtol=0)
    torch.testing.assert_close(pieces, whole, atol=1e-6, rtol=0)


@every
def test_the_input_is_left_alone(name):
    x = clouds(2, 3, 16, 16)
    kept = x.clone()
    corrupt(name, x).add_(1)
    assert torch.equal(x, kept)


# Errors


@every
@pytest.mark.parametrize("severity", [0, 6, -1, 2.5, "3", None])
def test_a_severity_is_one_of_five(name, severity):
    with pytest.raises(UsageError, match="whole number from 1 to 5"):
        CORRUPTIONS.get(name)(bounds=(0.0, 1.0), severity=severity)


@every
def test_a_range_is_needed(name):
    with pytest.raises(UsageError, match="these inputs have none"):
        CORRUPTIONS.get(name)(bounds=None)


@every
def test_vectors_and_tiny_images_are_refused(name):
    with pytest.raises(UsageError, match=r"corruptions take images .*inputs are 12$"):
        corrupt(name, torch.rand(4, 12))
    with pytest.raises(UsageError, match=r"8 x 8 pixels; a side of these has 7$"):
        corrupt(name, torch.rand(4, 1, 9, 7))


# Severity


def distances(name, x):
    return [float((corrupt(name, x, severity) - x).flatten(1).norm(dim=1).mean()) for severity in range(1, 6)]


def assert_grows(name, change, small):
    steps = list(itertools.pairwise(change))
    if name == "motion_blur" and small:  # radius 6, then 8, with a standard deviation of 2: the same to 1 in 1000
        assert change[3] == pytest.approx(change[2], rel=1e-3)
        del steps[2]
    if name == "elastic_transform" and small:
        steps = [(after, before) for before, after in steps]  # as published, it weakens: see the table
    elif name == "elastic_transform":
        steps = [change[0:2], change[2:4], change[3:5]]  # the third has a smaller affine map than the second
    elif name in UNEVEN:
        steps = [(change[0], change[4])]
    assert all(before < after for before, after in steps), change


@every
def test_the_change_grows_with_severity_on_digits(name, digits):
    assert_grows(name, distances(name, digits), small=True)


@every
@pytest.mark.parametrize("size", [(32, 32), (224, 224)])
def test_the_change_grows_with_severity_on_colour_images(name, size):
    """At 224, as published: in smaller images zoom and snow of severity 2 and 3 are the same to a hundredth."""
    small = size == (32, 32)
    assert_grows(name, distances(name, clouds(40 if small else 8, 3, *size)), small)


@every
@pytest.mark.parametrize("small", [False, True], ids=["imagenet", "cifar"])
def test_the_change_is_the_authors_on_photographs(name, small, data_root):
    x = photos(data_root, "cifar10_*.png") if small else photos(data_root, "imagenet_*.jpg", 224)
    repeats = 1 if name in NOT_RANDOM else 10 if small else 2
    change = []
    for severity in range(1, 6):
        moved = torch.stack([corrupt(name, x, severity, seed=seed) for seed in range(repeats)])
        change.append(float((moved - x).square().mean((2, 3, 4)).sqrt().mean()))
    for ours, theirs in zip(change, (SMALL if small else LARGE)[name], strict=True):
        assert theirs / FACTOR < ours < theirs * FACTOR, change
    assert_grows(name, change, small)


# Closed forms. Each is held against the strengths of both sizes of image.

SIZES = [(64, "imagenet"), (32, "cifar")]
both = pytest.mark.parametrize(("size", "strengths"), SIZES)


def published(name, strengths):
    return enumerate(getattr(CORRUPTIONS.get(name), strengths), 1)


def test_the_threshold_between_the_two_sets_is_a_shorter_side_of_64():
    for height, width, factor in ((64, 64, 0.2), (64, 200, 0.2), (63, 200, 0.4), (200, 63, 0.4)):
        x = clouds(1, 1, height, width)
        ratio = corrupt("contrast", x).std() / x.std()
        assert float(ratio) == pytest.approx(factor, rel=1e-3)


@both
def test_gaussian_noise_has_its_standard_deviation(size, strengths):
    x = torch.full((20, 3, size, size), 0.5)
    for severity, std in published("gaussian_noise", strengths):
        change = corrupt("gaussian_noise", x, severity) - x
        normal = torch.special.ndtri(torch.linspace(0, 1, 100_001).double()[1:-1])
        expected = (std * normal).clamp(-0.5, 0.5).square().mean().sqrt()  # what leaves the range is cut
        assert float(change.square().mean().sqrt()) == pytest.approx(float(expected), rel=0.02)
        assert abs(float(change.mean())) < 0.02 * std


@pytest.mark.parametrize(("size", "severities"), [(64, (1, 2)), (32, (1, 2, 3, 4, 5))])
def test_shot_noise_has_the_mean_and_variance_of_photons(size, severities):
    """At a third of white, where counts beyond white do not happen."""
    x = torch.full((40, 3, size, size), 1 / 3)
    for severity, photons in published("shot_noise", "imagenet" if size == 64 else "cifar"):
        if severity in severities:
            moved = corrupt("shot_noise", x, severity).double()
            assert float(moved.mean()) == pytest.approx(1 / 3, rel=0.005)
            assert float(moved.var()) == pytest.approx(1 / 3 / photons, rel=0.03)
            assert float((moved * photons).round().sub(moved * photons).abs().max()) < 1e-3  # whole photons


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.7, 3.0, 11.9, 12.1, 60.0, 500.0])
def test_poisson_counts_are_the_quantiles_of_their_uniform_numbers(rate):
    rates = torch.full((4, 50_000), rate)
    with per_sample(0, torch.arange(4), "counts"):
        count = poisson(rates).double()
    with per_sample(0, torch.arange(4), "counts"):
        uniform = uniform_like(rates).double()
    if rate == 0:
        assert not count.any()
        return
    below = torch.where(count > 0, torch.special.gammaincc(count.clamp_min(1), rates.double()), 0.0)
    up_to = torch.special.gammaincc(count + 1, rates.double())
    wrong = (uniform < below - 1e-5) | (uniform > up_to + 1e-5)
    assert float(wrong.double().mean()) <= (0 if rate < 12 else 0.0025)
    assert float(count.mean()) == pytest.approx(rate, rel=5 / (200_000 * rate) ** 0.5)


@both
def test_impulse_noise_touches_its_share_evenly(size, strengths):
    x = torch.full((20, 3, size, size), 0.5)
    for severity, share in published("impulse_noise", strengths):
        moved = corrupt("impulse_noise", x, severity)
        slack = 5 * (share / 2 / moved.numel()) ** 0.5
        assert abs(float((moved == 0).double().mean()) - share / 2) < slack
        assert abs(float((moved == 1).double().mean()) - share / 2) < slack
        assert ((moved == 0) | (moved == 1) | (moved == x)).all()


@both
@pytest.mark.parametrize(
    "name", ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "elastic_transform", "pixelate", "contrast"]
)
def test_a_constant_image_stays_constant(name, size, strengths):
    x = torch.tensor([0.0, 0.2, 0.7, 1.0])[:, None, None, None].expand(-1, 3, size, size + 5)
    for severity in range(1, 6):
        torch.testing.assert_close(corrupt(name, x, severity), x, atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", ["defocus_blur", "motion_blur"])
def test_a_blur_keeps_the_mean_where_nothing_crosses_the_border(name):
    x = torch.full((4, 3, 160, 160), 0.5)
    x[:, :, 50:-50, 50:-50] = clouds(4, 3, 60, 60)
    for severity in range(1, 6):
        moved = corrupt(name, x, severity)
        torch.testing.assert_close(moved.mean((2, 3)), x.mean((2, 3)), atol=1e-5, rtol=0)
        assert (moved.var((2, 3)) < x.var((2, 3))).all()


def test_defocus_spreads_a_point_over_its_disk():
    x = torch.zeros(1, 1, 65, 65)
    x[0, 0, 32, 32] = 1
    y, z = torch.meshgrid(torch.arange(65) - 32, torch.arange(65) - 32, indexing="ij")
    for severity, (radius, _) in published("defocus_blur", "imagenet"):
        moved = corrupt("defocus_blur", x, severity)[0, 0]
        far = (y**2 + z**2).sqrt()
        assert float(moved.sum()) == pytest.approx(1, abs=1e-5)
        assert float(moved[far > radius + 3].abs().max()) < 1e-6
        area = int((far <= radius).sum())
        torch.testing.assert_close(moved[far < radius - 3], torch.full_like(moved[far < radius - 3], 1 / area))


def test_motion_spreads_a_point_along_one_line_within_45_degrees():
    x = torch.zeros(20, 1, 129, 129)
    x[:, :, 64, 64] = 1
    moved = corrupt("motion_blur", x, 3).double()[:, 0]
    place = torch.arange(129).double() - 64
    down, right = (moved.sum(2) * place).sum(1), (moved.sum(1) * place).sum(1)
    angle = torch.rad2deg(torch.atan(down / right))
    assert float(angle.abs().max()) < 46
    assert float(angle.min()) < -20
    assert float(angle.max()) > 20
    weight = np.exp(-(np.arange(31) ** 2) / (2 * 8**2))
    mean = (weight * np.arange(31)).sum() / weight.sum()
    np.testing.assert_allclose(torch.hypot(down, right), mean, rtol=0.05)
    assert (moved > 1e-6).sum((1, 2)).max() <= 31  # one pixel for each step


def test_correlation_is_that_of_a_direct_convolution():
    x = clouds(3, 2, 20, 31)
    kernel = torch.rand(3, 7, 7)
    for mode in ("replicate", "reflect"):
        padded = F.pad(x, [3] * 4, mode=mode)
        direct = torch.stack([F.conv2d(p[:, None], k[None, None])[:, 0] for p, k in zip(padded, kernel, strict=True)])
        torch.testing.assert_close(correlate(x, kernel, mode), direct, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(("size", "sigma"), [(8, 0.0), (8, 0.05), (20, 1.5), (9, 12.0)])
def test_the_matrix_of_a_blur_is_the_blur(mirrored, size, sigma):
    line = torch.rand(size, generator=torch.Generator().manual_seed(0)).double()
    reach = int(4 * sigma + 0.5)
    period = torch.cat([line, line.flip(0)])
    wide = [period[i % (2 * size)] if mirrored else line[min(max(i, 0), size - 1)] for i in range(-reach, size + reach)]
    weight = torch.exp(-(torch.arange(-reach, reach + 1).double() ** 2) / (2 * max(sigma, 1e-3) ** 2))
    direct = torch.stack(
        [(torch.stack(wide[i : i + 2 * reach + 1]) * weight / weight.sum()).sum() for i in range(size)]
    )
    torch.testing.assert_close(gaussian_blur(size, sigma, 4, mirrored) @ line, direct)


@pytest.mark.parametrize("kernel", ["disk", "streak"])
def test_kernels_have_sum_one(kernel):
    x = torch.zeros(5, 1, 8, 8)
    for severity in range(5):
        for strengths in ("imagenet", "cifar"):
            if kernel == "disk":
                made = disk(*getattr(CORRUPTIONS.get("defocus_blur"), strengths)[severity], like=x)
            else:
                with per_sample(0, torch.arange(5), "angles"):
                    made = streak(x, *getattr(CORRUPTIONS.get("motion_blur"), strengths)[severity], -45, 45)
            torch.testing.assert_close(made.sum((1, 2)), torch.ones(len(made)))


@pytest.mark.parametrize(("reach", "size"), [(1, (9, 14)), (2, (12, 12)), (4, (16, 11))])
def test_glass_takes_the_pixels_that_a_walk_through_the_image_takes(reach, size):
    """The authors' walk, pixel by pixel: from the last to the first, each takes what a near one holds by then."""
    height, width = size
    x = torch.zeros(3, 1, height, width)
    with per_sample(0, torch.arange(3), "walk"):
        source = scattered(x, reach)
    with per_sample(0, torch.arange(3), "walk"):
        down, right = (torch.floor(uniform_like(x[:, 0]) * 2 * reach).long() - reach for _ in range(2))
    for n in range(3):
        held = torch.arange(height * width).reshape(height, width)
        for row in range(height - reach, reach, -1):
            for column in range(width - reach, reach, -1):
                held[row, column] = held[row + down[n, row, column], column + right[n, row, column]].clone()
        assert torch.equal(source[n].reshape(height, width), held)
    assert not torch.equal(source[0], source[1])


def test_glass_without_blur_only_moves_values():
    x = torch.arange(256.0).reshape(1, 1, 16, 16) / 256
    with per_sample(0, torch.arange(1), "glass"):
        moved = glass_blur(x, (0.05, 2, 1))
    assert set(moved.flatten().tolist()) < set(x.flatten().tolist())
    assert torch.equal(moved[..., :3, :], x[..., :3, :])  # the border stays


def test_enlarging_a_ramp_keeps_its_middle_and_divides_its_slope():
    ramp = torch.linspace(0, 1, 65).expand(1, 1, 65, 65)
    for factor in (1.1, 1.5, 2.0, 3.0):
        slope = enlarged(ramp, factor).diff(dim=3)
        assert float(slope.mean()) == pytest.approx(1 / 64 / factor, rel=0.05)
        assert float(enlarged(ramp, factor)[0, 0, 32, 32]) == pytest.approx(0.5, abs=0.02)
    assert torch.equal(enlarged(ramp, 1), ramp)


def test_zoom_leaves_the_middle_sharper_than_the_border():
    x = clouds(30, 3, 96, 96)
    change = (corrupt("zoom_blur", x, 3) - x).abs().mean((0, 1))
    assert float(change[40:56, 40:56].mean()) < 0.7 * float(change[:8].mean())


def test_snow_brightens_and_adds_a_layer_that_half_a_turn_keeps():
    x = torch.zeros(8, 3, 64, 64)
    for severity, strength in published("snow", "imagenet"):
        moved = corrupt("snow", x, severity)
        pale = (1 - strength[-1]) * 0.5
        assert float(moved.min()) >= pale - 1e-5
        torch.testing.assert_close(moved, moved.flip(2, 3), atol=1e-6, rtol=0)
        assert torch.equal(moved[:, 0], moved[:, 1])  # flakes are white


def test_snow_falls_within_45_degrees_of_the_vertical():
    flakes = corrupt("snow", torch.zeros(20, 1, 128, 128), 1)
    assert float(flakes.diff(dim=2).abs().mean()) < 0.8 * float(flakes.diff(dim=3).abs().mean())


@both
def test_frost_is_its_share_of_the_image_and_its_share_of_ice(size, strengths):
    black, grey = torch.zeros(30, 3, size, size), torch.full((30, 3, size, size), 0.05)
    for severity, (kept, weight) in published("frost", strengths):
        ice = corrupt("frost", black, severity)
        assert 0.6 < float(ice.mean()) / weight < 0.7  # between the means of the authors' photographs
        assert 0.05 < float(ice.std((2, 3)).mean()) / weight < 0.17
        assert float(ice[:, 2].mean()) > float(ice[:, 0].mean())  # bluish
        torch.testing.assert_close(corrupt("frost", grey, severity), ice + kept * grey, atol=1e-6, rtol=0)


@both
def test_fog_keeps_the_brightest_value_and_fogs_black_by_its_weight(size, strengths):
    x = torch.zeros(10, 1, size, size)
    x[:, :, 3, 5] = 0.8
    for severity, (weight, _) in published("fog", strengths):
        moved = corrupt("fog", x, severity)
        assert float(moved.max()) <= 0.8 + 1e-6
        top = torch.where(x > 0, 0.0, moved).amax((1, 2, 3))
        torch.testing.assert_close(top, torch.full((10,), weight * 0.8 / (0.8 + weight)), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("shape", "whole"), [((32, 32), True), ((33, 20), False), ((64, 9), False)])
def test_plasma_spans_the_unit_interval_and_is_rougher_for_a_smaller_decay(shape, whole):
    with per_sample(0, torch.arange(20), "plasma"):
        rough, smooth = (plasma(torch.zeros(20, 3, *shape), decay) for decay in (1.4, 3))
    assert rough.shape == (20, 1, *shape)
    for field in (rough, smooth):
        assert float(field.min()) >= 0
        assert float(field.max()) <= 1
        if whole:
            assert (field.amin((1, 2, 3)) == 0).all()
            assert (field.amax((1, 2, 3)) == 1).all()
    assert float(rough.diff(dim=2).abs().mean()) > 1.5 * float(smooth.diff(dim=2).abs().mean())


@both
def test_brightness_raises_the_value_of_hsv(size, strengths):
    x = clouds(1, 3, size, size)
    x[..., :2, :2] = 0
    pixels = x[0].flatten(1).T[:500].tolist()
    for severity, shift in published("brightness", strengths):
        expected = []
        for hue, saturation, value in (colorsys.rgb_to_hsv(*pixel) for pixel in pixels):
            expected.append(colorsys.hsv_to_rgb(hue, saturation, min(value + shift, 1)))
        moved = corrupt("brightness", x, severity)[0].flatten(1).T[:500]
        torch.testing.assert_close(moved, torch.tensor(expected), atol=1e-5, rtol=0)


@both
def test_brightness_of_a_constant_grey_image(size, strengths):
    for severity, shift in published("brightness", strengths):
        for value in (0.0, 0.3, 0.9, 1.0):
            for channels in (1, 3):
                moved = corrupt("brightness", torch.full((1, channels, size, size), value), severity)
                torch.testing.assert_close(moved, torch.full_like(moved, min(value + shift, 1)))


@both
def test_contrast_keeps_the_mean_of_each_channel_and_scales_deviations(size, strengths):
    x = clouds(4, 3, size, size)
    mean = x.mean((2, 3), keepdim=True)
    for severity, factor in published("contrast", strengths):
        moved = corrupt("contrast", x, severity)
        torch.testing.assert_close(moved.mean((2, 3), keepdim=True), mean, atol=1e-5, rtol=0)
        torch.testing.assert_close(moved - mean, factor * (x - mean), atol=1e-5, rtol=0)


def test_pixelate_gives_the_means_of_blocks():
    x = clouds(2, 3, 64, 128)
    expected = F.avg_pool2d(x, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(corrupt("pixelate", x, 5), expected, atol=1e-6, rtol=0)


@both
def test_pixelate_gives_as_many_constant_blocks_as_it_says(size, strengths):
    x = clouds(2, 3, size, size + 6)
    for severity, share in published("pixelate", strengths):
        moved = corrupt("pixelate", x, severity)
        for axis in (2, 3):
            edges = moved.diff(dim=axis).abs().amax([a for a in range(4) if a != axis]) > 0
            assert int(edges.sum()) + 1 == int(x.shape[axis] * share)
        torch.testing.assert_close(corrupt("pixelate", moved, severity), moved, atol=1e-6, rtol=0)


@both
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_torchvisions_at_the_published_quality(size, strengths, channels):
    x = clouds(3, channels, size, size)
    for severity, quality in published("jpeg_compression", strengths):
        bytes_ = (x * 255).round().to(torch.uint8)
        expected = torch.stack([decode_jpeg(encode_jpeg(picture, quality=quality)) for picture in bytes_])
        torch.testing.assert_close(corrupt("jpeg_compression", x, severity) * 255, expected.float(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", sorted(NOT_RANDOM - {"jpeg_compression"}))
def test_a_grey_image_is_a_colour_image_of_equal_channels(name):
    x = clouds(2, 1, 32, 32)
    for severity in range(1, 6):
        colour = corrupt(name, x.expand(-1, 3, -1, -1), severity)
        torch.testing.assert_close(corrupt(name, x, severity).expand_as(colour), colour, atol=1e-6, rtol=0)


@both
def test_elastic_without_strength_moves_nothing_and_otherwise_as_far_as_it_says(size, strengths):
    elastic = CORRUPTIONS.get("elastic_transform")(bounds=(0.0, 1.0))
    ramp = torch.linspace(0, 1, size).expand(30, 1, size, size)
    with per_sample(0, torch.arange(30), "still"):
        torch.testing.assert_close(elastic.corrupt(ramp, (0, 0, 0)), ramp, atol=1e-5, rtol=0)
    inner = slice(size // 3, -(size // 3))
    with per_sample(0, torch.arange(30), "affine"):  # by at most a tenth at the three points, so in their triangle
        moved = (elastic.corrupt(ramp, (0, 0, 0.1)) - ramp)[:, 0, inner, inner]
    assert 0.02 < float(moved.abs().mean()) < 0.1
    with per_sample(0, torch.arange(30), "field"):
        moved = (elastic.corrupt(ramp, (0.1, 0.04, 0)) - ramp)[:, 0, inner, inner] * (size - 1)
    # Uniform numbers of variance 1/3 under a two-dimensional Gaussian: 1 / (4 pi sigma^2) of it is left.
    expected = 0.1 * size * (1 / 3 / (4 * np.pi * (0.04 * size) ** 2)) ** 0.5
    assert float(moved.std()) == pytest.approx(expected, rel=0.1)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@every
def test_the_gpu_gives_the_picture_of_the_cpu(name):
    """But for single pixels at which rounding decides (a threshold, a nearest byte, a count)."""
    x = clouds(4, 3, 64, 64)
    moved = corrupt(name, x.cuda())
    assert moved.device.type == "cuda"
    assert float(((moved.cpu() - corrupt(name, x)).abs() > 1e-3).double().mean()) < 1e-3
