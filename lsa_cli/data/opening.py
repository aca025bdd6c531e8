"""open_data: a spec such as npz:FILE -> labelled images."""

import shlex
import urllib.parse
from collections.abc import Callable
from pathlib import Path

from lsa_cli.data.base import DATA_SOURCES, LabelledData, SourceRequest, checked, traits_of
from lsa_cli.data.factories import from_factory
from lsa_cli.data.sizes import ImageSize
from lsa_cli.distributed import affinity
from lsa_cli.errors import DataError, UsageError
from lsa_cli.imports import can_import
from lsa_cli.registry import unknown


def runs_user_code(spec: str) -> bool:
    """Whether opening `spec` may run code: a Python factory, or a source that states so or states nothing."""
    source = _parts(spec)[0]
    return source not in DATA_SOURCES or traits_of(source).runs_code


def location_of(spec: str) -> str:
    """The file or folder that `SOURCE:PATH[?...]` names, where it names one."""
    return _parts(spec)[1]


def code_of(spec: str) -> str | None:
    """The module or Python file of a factory, `pkg.mod:factory` or `file.py:factory`; None for any other data."""
    return None if _parts(spec)[0] in DATA_SOURCES else spec.partition("?")[0].rpartition(":")[0]


def file_of(spec: str, relative_to: Path | None = None) -> Path | None:
    """The single file that `SOURCE:PATH[?...]` names; None for folders, names and factories. relative_to: as for `open_data`."""
    source, location, _ = _parts(spec)
    if source not in DATA_SOURCES or not traits_of(source).is_path:
        return None
    path = Path(location) if relative_to is None else relative_to / location
    return path if path.is_file() else None


def _parts(spec: str) -> tuple[str, str, str]:
    """SOURCE:PATH?QUERY -> its three parts; a part that is missing is "". A path alone gets the source that reads it."""
    source, _, rest = _with_source(spec).partition(":")
    location, _, query = rest.partition("?")
    return source, location, query


def open_data(
    spec: str,
    *,
    split: str | None = None,
    channels: int | None = None,
    size: ImageSize | None = None,
    relative_to: Path | None = None,
    threads: int | None = None,
) -> LabelledData:
    """Open `SOURCE:PATH[?option=value&...]`, or a Python factory `pkg.mod:factory`.

    channels: of the network's images, None if unknown. size: to which images are resized, see ImageSize. threads: that
    decode images; None: one for each core. relative_to: the folder of a relative location (the checkpoint's, for the data
    that it names); then nothing is downloaded. Raises DataError when the data cannot be opened or does not fit the
    network, and UsageError for a wrong spec.
    """
    spec = _with_source(spec)
    if ":" not in spec:
        raise UsageError(
            f"--data '{spec}' must read SOURCE:PATH, with SOURCE one of {', '.join(DATA_SOURCES.names())}"
            f"{_suggestion(spec)}"
        )
    source, location, query = _parts(spec)
    options = _options(query)
    if source not in DATA_SOURCES:
        if source.isidentifier() and not can_import(source):
            raise UsageError(f"--data: {unknown('data source', source, DATA_SOURCES.names())}, or pkg.mod:factory")
        return from_factory(spec, options.get("split") if split is None else split, channels, size)
    if relative_to is not None:
        location, options = _beside(relative_to, source, location, options)
    request = SourceRequest(
        location, options, options.get("split") if split is None else split, channels, size, threads or affinity()
    )
    return checked(DATA_SOURCES.get(source)(request))


def _with_source(spec: str) -> str:
    """The spec, with the source in front where it is the path of a file or folder that one source reads: npz:FILE."""
    path = Path(spec.partition("?")[0])
    sources = {name: traits_of(name) for name in DATA_SOURCES.names()}
    if spec.partition(":")[0] in sources:
        return spec
    if path.is_dir() and not _torchvision_sets(path):
        marked = (name for name, traits in sources.items() if any(any(path.glob(file)) for file in traits.marks))
        return f"{next(marked, 'imagefolder')}:{spec}"
    fits = (name for name, traits in sources.items() if path.suffix.lower() in traits.suffixes)
    source = next(fits, None) if path.is_file() else None
    return f"{source}:{spec}" if source is not None else spec


# Folders and files below ?root= by which torchvision finds a data set, and its name.
_TORCHVISION = {
    "MNIST/raw": "MNIST", "FashionMNIST/raw": "FashionMNIST", "KMNIST/raw": "KMNIST", "EMNIST/raw": "EMNIST",
    "cifar-10-batches-py": "CIFAR10", "cifar-100-python": "CIFAR100", "test_32x32.mat": "SVHN", "stl10_binary": "STL10",
}  # fmt: skip


def _torchvision_sets(folder: Path) -> dict[str, Path]:
    """The names of the data sets of torchvision in a folder or around it, each with its root."""
    return {
        name: root
        for root in (folder, *folder.absolute().parents[:2])
        for inside, name in _TORCHVISION.items()
        if (root / inside).exists() and (root == folder or (root / inside).is_relative_to(folder.absolute()))
    }


def _suggestion(spec: str) -> str:
    """The spec that is probably meant, as "; say --data ..."; otherwise ""."""
    from torchvision import datasets

    path = Path(spec.partition("?")[0])
    found = _torchvision_sets(path) if path.is_dir() else {}
    if found:
        several = (shlex.join(["--data", f"torchvision:{name}?root={root}"]) for name, root in found.items())
        return f"; {path} holds data of torchvision: say {' or '.join(several)}"
    named = next((name for name in datasets.__all__ if name.lower() == spec.lower().replace("-", "")), None)
    if named is not None:
        return f"; say --data 'torchvision:{named}?root=DIR', with the folder that holds its files"
    if path.exists():
        return f"; lsa reads no data from {path}; write a function that returns (x, y) and say --data path/to/file.py:function"
    return f"; there is no file or folder {path} (you are in {Path.cwd()})"


def may_download(spec: str) -> bool:
    """Whether opening this data set may download it."""
    source, location, query = _parts(spec)
    return source in DATA_SOURCES and traits_of(source).downloads(location, _options(query))


def with_paths(spec: str, move: Callable[[str], str]) -> str:
    """The spec with `move` applied to each path in it: the location, if it is a path, and ?root=."""
    if ":" not in spec:
        spec = _with_source(move(spec))
        return spec if ":" not in spec else with_paths(spec, move)
    source, location, query = _parts(spec)
    options = [f"root={move(part[5:])}" if part.startswith("root=") else part for part in query.split("&") if part]
    if source in DATA_SOURCES and traits_of(source).is_path:
        location = move(location)
    return f"{source}:{location}{'?' if options else ''}{'&'.join(options)}"


def _options(query: str) -> dict[str, str]:
    return dict(urllib.parse.parse_qsl(query, keep_blank_values=True, strict_parsing=False))


def _beside(folder: Path, source: str, location: str, options: dict[str, str]) -> tuple[str, dict[str, str]]:
    """The location and ?root= from the folder of the checkpoint. Raises DataError for data to download."""
    traits = traits_of(source)
    if "root" in options:
        options = {**options, "root": str(folder / options["root"])}
    if traits.is_path:
        location = str(folder / location)
    if traits.downloads(location, options):
        raise DataError(
            f"the checkpoint names data to download ({source}:{location}); if you trust it, give it with --data"
        )
    return location, options
