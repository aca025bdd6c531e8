"""The image operations of the common corruptions: blurs, resampling, Poisson counts, plasma noise."""

import math

import torch
from torch.nn import functional as F

from lsa_cli.attacks.randomness import uniform_like

EXACT_RATE = 12.0  # up to here Poisson counts are exact
LUMA = (0.299, 0.587, 0.114)


def poisson(rate: torch.Tensor) -> torch.Tensor:  # (N, ...) -> (N, ...)
    """Poisson counts: the quantiles of one uniform number for each rate."""
    uniform = uniform_like(rate).clamp_max(1 - 2**-19)  # sums of probabilities in float32 come this close to 1
    normal = torch.special.ndtri(uniform)
    # The expansion of the quantile to the order 1 / sqrt(rate), less the variance that rounding adds.
    root = rate.clamp_min(1).sqrt()
    large = rate + root * normal + (normal**2 - 1) / 6 - (normal**3 + 2 * normal) / (72 * root)
    small = rate.clamp_max(EXACT_RATE)
    top = float(small.max())
    probability = torch.exp(-small)
    below, count = probability.clone(), torch.zeros_like(rate)
    for k in range(1, int(top + 6 * math.sqrt(top) + 6)):  # larger counts have a probability below a billionth
        count += uniform > below
        probability = probability * small / k
        below += probability
    return torch.where(rate <= EXACT_RATE, count, large.round().clamp_min(0))


def correlate(x: torch.Tensor, kernel: torch.Tensor, beyond: str = "replicate") -> torch.Tensor:
    """x (N, C, H, W) correlated with a kernel (1 or N, K, K). beyond: the padding mode."""
    height, width = x.shape[2:]
    padded = F.pad(x, [kernel.shape[-1] // 2] * 4, mode=beyond)
    size = padded.shape[2:]
    product = torch.fft.rfft2(padded) * torch.fft.rfft2(kernel[:, None], s=size).conj()
    return torch.fft.irfft2(product, s=size)[..., :height, :width]


def disk(radius: float, sigma: float, like: torch.Tensor) -> torch.Tensor:
    """A disk softened by a short Gaussian, as a kernel of sum 1 (1, K, K)."""
    margin = 1 if radius <= 8 else 2
    soft = torch.exp(-(torch.arange(-margin, margin + 1).double() ** 2) / (2 * sigma**2))
    soft /= soft.sum()
    reach = int(radius) + margin
    square = torch.arange(-reach, reach + 1).double() ** 2
    inside = (square[:, None] + square <= radius**2).double()
    kernel = F.conv2d(inside[None, None], torch.outer(soft, soft)[None, None], padding=margin)[0]
    return (kernel / kernel.sum()).to(like)


def streak(x: torch.Tensor, radius: int, sigma: float, low: float, high: float) -> torch.Tensor:
    """Kernels of sum 1 (N, K, K): half a Gaussian along a line, one random angle in degrees for each sample."""
    angle = torch.deg2rad(low + (high - low) * uniform_like(x[:, 0, 0, 0]))
    reach = 2 * radius
    step = torch.arange(reach + 1, device=x.device)
    weight = torch.exp(-(step.to(x) ** 2) / (2 * sigma**2))
    rows, columns = (
        F.one_hot(torch.ceil(step * along[:, None] - 0.5).long() + reach, 2 * reach + 1).to(x)
        for along in (angle.sin(), angle.cos())
    )
    return torch.einsum("t,nth,ntw->nhw", weight / weight.sum(), rows, columns)


def gaussian_blur(size: int, sigma: float, truncate: float, mirrored: bool) -> torch.Tensor:
    """The blur of a line of `size` pixels as a matrix. Beyond the ends: mirrored, or the last pixel repeated."""
    reach = int(truncate * sigma + 0.5)
    offset = torch.arange(-reach, reach + 1)
    weight = torch.exp(-(offset.double() ** 2) / (2 * max(sigma, 1e-6) ** 2))
    source = torch.arange(size)[:, None] + offset
    if mirrored:
        source = source % (2 * size)
        source = torch.minimum(source, 2 * size - 1 - source)
    matrix = torch.zeros(size, size, dtype=torch.double)
    matrix.scatter_add_(1, source.clamp(0, size - 1), (weight / weight.sum()).expand(size, -1))
    return matrix


def scattered(x: torch.Tensor, reach: int) -> torch.Tensor:
    """(N, H * W): the pixel that each pixel takes its value from.

    The authors' code goes from the last pixel to the first and gives each one the value of a random pixel at most `reach`
    away. Where that pixel is later in the image, its own value has been replaced before. Following these links to their
    end gives the same result for all pixels at once.
    """
    height, width = x.shape[2:]
    place = torch.arange(height * width, device=x.device).reshape(1, height, width)
    down, right = (
        (uniform_like(x[:, 0]) * 2 * reach).long() - reach  # -reach ... reach - 1
        for _ in range(2)
    )
    inner = torch.zeros_like(place, dtype=torch.bool)
    inner[:, reach + 1 : height - reach + 1, reach + 1 : width - reach + 1] = True
    source = torch.where(inner, place + down * width + right, place).flatten(1)
    link = torch.maximum(source, place.flatten(1))
    while not torch.equal(further := link.gather(1, link), link):
        link = further
    return source.gather(1, link)


def enlarged(x: torch.Tensor, factor: float) -> torch.Tensor:
    """The middle of the images, enlarged to the size of the images by bilinear interpolation."""
    if factor == 1:
        return x
    height, width = x.shape[2:]
    high, wide = math.ceil(height / factor), math.ceil(width / factor)
    top, left = (height - high) // 2, (width - wide) // 2
    middle = x[:, :, top : top + high, left : left + wide]
    size = (max(height, round(high * factor)), max(width, round(wide * factor)))
    large = F.interpolate(middle, size=size, mode="bilinear", align_corners=True)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return large[:, :, top : top + height, left : left + width]


def sampled(x: torch.Tensor, place: torch.Tensor, align_corners: bool) -> torch.Tensor:
    """x at places (N, H, W, 2: x, y) in pixels, by bilinear interpolation. Beyond the border the image is mirrored, at the
    middle of the last pixel (align_corners) or at its edge."""
    size = x.new_tensor([x.shape[3], x.shape[2]])
    grid = 2 * place / (size - 1) - 1 if align_corners else (2 * place + 1) / size - 1
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=align_corners)


def plasma(x: torch.Tensor, decay: float) -> torch.Tensor:  # (N, C, H, W) -> (N, 1, H, W) in [0, 1]
    """A cloudy field by the diamond-square algorithm on a torus; each octave is weaker by decay squared."""
    height, width = x.shape[2:]
    step = 1 << (max(height, width) - 1).bit_length()
    field = x.new_zeros(len(x), step, step)
    strength = 1.0

    def middle(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
        return (a + b + c + d) / 4 + strength * (2 * uniform_like(a) - 1)

    while step > 1:
        half = step // 2
        corner = field[:, ::step, ::step]
        below, beside = corner.roll(-1, 1), corner.roll(-1, 2)
        centre = middle(corner, below, beside, below.roll(-1, 2))
        field[:, half::step, half::step] = centre
        field[:, ::step, half::step] = middle(corner, beside, centre, centre.roll(1, 1))
        field[:, half::step, ::step] = middle(corner, below, centre, centre.roll(1, 2))
        step = half
        strength /= decay**2
    field -= field.amin((1, 2), keepdim=True)
    field /= field.amax((1, 2), keepdim=True)
    return field[:, None, :height, :width]


def standardised(x: torch.Tensor) -> torch.Tensor:
    """Mean 0 and standard deviation 1 for each sample."""
    return (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True)


def grey(x: torch.Tensor) -> torch.Tensor:  # (N, C, H, W) -> (N, 1, H, W)
    """The luma of colour images, the mean of any other channels."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    return (x * x.new_tensor(LUMA).reshape(3, 1, 1)).sum(1, keepdim=True)
