"""Random numbers that belong to a sample, not to a batch.

Within an attack, a number is a function of the seed, the sample's index in its data set, the attack, and the count of
numbers drawn before. Batch size, order, sharding and device do not change it. The generator is counter-based: the
finaliser of SplitMix64 over key + counter, in vectorised int64 arithmetic, which overflows alike on every device.
"""

import math
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch

_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB


def _signed(value: int) -> int:
    """The int64 with the bit pattern of a 64-bit integer."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


def _shift(z: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical shift to the right; torch's is arithmetic."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _mix(z: torch.Tensor) -> torch.Tensor:  # int64 -> int64
    z = (z ^ _shift(z, 30)) * _signed(_FIRST)
    z = (z ^ _shift(z, 27)) * _signed(_SECOND)
    return z ^ _shift(z, 31)


@dataclass
class _Draws:
    seed: int
    index: torch.Tensor  # (N,)
    keys: torch.Tensor  # (N,) int64
    used: int = 0
    # What `repeat` was called with (keys, times), and what it made of them.
    repeated: tuple[torch.Tensor, int, torch.Tensor, torch.Tensor] | None = None


_current: ContextVar[_Draws | None] = ContextVar("lsa_draws", default=None)


@contextmanager
def per_sample(seed: int, index: torch.Tensor, stream: str) -> Iterator[None]:
    """A context for draws for the samples `index` (N,). stream: a name; other names give other numbers."""
    name = zlib.crc32(stream.encode())
    base = torch.tensor(_signed((seed * 2654435761 + name) * _GOLDEN), device=index.device)
    keys = _mix(_mix(base) ^ _mix(index.long() * _signed(_GOLDEN) + _signed(_SECOND)))
    token = _current.set(_Draws(seed, index, keys))
    try:
        yield
    finally:
        _current.reset(token)


def keep(mask: torch.Tensor) -> None:
    """Draw for the samples of this mask (N,) only from now on. Their numbers do not change."""
    draws = _current.get()
    if draws is not None:
        mask = mask.to(draws.keys.device)
        draws.index, draws.keys = draws.index[mask], draws.keys[mask]


def repeat(times: int) -> None:
    """Let each sample stand `times` times in a row from now on. The first of its rows draws the numbers of the sample."""
    draws = _current.get()
    if draws is None or times == 1:
        return
    if draws.repeated is None or draws.repeated[0] is not draws.keys or draws.repeated[1] != times:
        others = [_mix(draws.keys ^ _signed(number * _GOLDEN)) for number in range(1, times)]
        rows = draws.index.repeat_interleave(times), torch.stack([draws.keys, *others], 1).flatten()
        draws.repeated = draws.keys, times, *rows  # a random search repeats the same samples in each of its passes
    _, _, draws.index, draws.keys = draws.repeated


def in_parts(compute: Callable[[slice], torch.Tensor], count: int, at_once: int) -> torch.Tensor:
    """The results of `compute` on slices of at most `at_once` of `count` samples, concatenated.

    Each sample gets the same random numbers as in one pass over all samples.
    """
    whole = _current.get()
    parts = [slice(start, start + at_once) for start in range(0, max(count, 1), at_once)]
    if whole is None or len(whole.keys) != count:
        return torch.cat([compute(part) for part in parts])
    found, used = [], whole.used
    for part in parts:
        own = _Draws(whole.seed, whole.index[part], whole.keys[part], whole.used)
        token = _current.set(own)
        try:
            found.append(compute(part))
        finally:
            _current.reset(token)
        used = own.used
    whole.used = used
    return torch.cat(found)


@contextmanager
def kept_aside() -> Iterator[None]:
    """A context that undoes what `keep` and `repeat` do in it. The count of numbers continues."""
    draws = _current.get()
    before = (draws.index, draws.keys) if draws is not None else None
    yield
    if draws is not None and before is not None:
        draws.index, draws.keys = before


def drawn_for() -> tuple[int, torch.Tensor]:
    """The seed and the samples (N,) of the current draws, for an attack that runs others on the same samples."""
    draws = _current.get()
    if draws is None:
        raise RuntimeError("samples are known inside Attack.perturb and `per_sample` only")
    return draws.seed, draws.index


def _draws_for(x: torch.Tensor) -> _Draws:
    draws = _current.get()
    if draws is None or len(draws.keys) != len(x):
        raise RuntimeError("random numbers are drawn one row per sample, inside Attack.perturb only")
    return draws


def uniform_like(x: torch.Tensor) -> torch.Tensor:  # (N, ...) -> (N, ...) in (0, 1)
    """Independent uniform numbers in the open interval (0, 1), shaped and placed like `x`."""
    draws = _draws_for(x)
    size = math.prod(x.shape[1:])
    counter = torch.arange(draws.used + 1, draws.used + size + 1, device=x.device) * _signed(_GOLDEN)
    draws.used += size
    bits = _shift(_mix(draws.keys.to(x.device)[:, None] + counter), 40)  # the upper 24 bits are exact in float32
    # Adding 0.5 rounds the largest up to 1, whose normal quantile is infinite.
    return ((bits.float() + 0.5) / (1 << 24)).clamp_max(1 - 2**-24).reshape(x.shape).to(x.dtype)


def belongs_to(x: torch.Tensor) -> bool:
    """Whether the current draws have one row for each sample of x (N, ...)."""
    draws = _current.get()
    return draws is not None and len(draws.keys) == len(x)


def many_normal_like(x: torch.Tensor) -> torch.Tensor:  # (N, ...) -> (N, ...) float32
    """As `normal_like`, for the noise of whole layers in every pass.

    On the CPU torch's generator, seeded for each sample, draws them in about an eighth of the time. So here, and nowhere
    else, the CPU and a GPU draw different numbers.
    """
    if x.device.type != "cpu":
        return normal_like(x.detach().float())
    draws = _draws_for(x)
    seeds = _shift(_mix(draws.keys + _signed((draws.used + 1) * _GOLDEN)), 1).tolist()
    draws.used += math.prod(x.shape[1:])
    drawn, generator = torch.empty(x.shape), torch.Generator()
    for row, seed in zip(drawn, seeds, strict=True):
        row.normal_(generator=generator.manual_seed(seed))
    return drawn


def normal_like(x: torch.Tensor) -> torch.Tensor:  # (N, ...) -> (N, ...)
    """Independent standard normal numbers, shaped and placed like `x`."""
    return torch.special.ndtri(uniform_like(x))
