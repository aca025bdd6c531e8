"""Zip files of torch.save, TorchScript and torch.export.

`zipfile` reads the list of entries. The checks here refuse a file in which another program could find other entries:
torch, Python and other tools search for the list differently, compare names differently and trust different copies of a
size. The bytes of an entry are read here, because a tensor needs a part of an entry, and `zipfile` of Python 3.11 reads
every entry from its beginning.
"""

import struct
import zipfile
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

from lsa_cli.errors import CheckpointError
from lsa_cli.models.formats.reading import LARGEST_HEADER, MOST_ENTRIES, chunks_of, read_exactly
from lsa_cli.models.pickles.symbols import ambiguous, shown

_END, _END64, _LOCATOR = struct.Struct("<4sHHHHIIH"), struct.Struct("<4sQHHIIQQQQ"), struct.Struct("<4sIQI")
_LOCAL = struct.Struct("<4s22xHH")
_IN_64_BITS = 2**32 - 1
_LONGEST_END = 2**16 + _END.size
_FOLDER = 0x10  # among the attributes that MS-DOS gives an entry
_ZIP64, _OTHER_NAME = 0x0001, 0x7075  # extra fields: sizes of 64 bits; a name that replaces the entry's


def entries_of(path: Path) -> dict[str, zipfile.ZipInfo]:
    """The entries of a zip file by name. Raises CheckpointError for a damaged, ambiguous or hostile list."""
    try:
        with path.open("rb") as file, zipfile.ZipFile(_Bounded(file)) as archive:
            listed = archive.infolist()
            is_one_list = _is_one_list(file, path.stat().st_size, archive.start_dir, len(listed))
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, OverflowError, struct.error) as error:
        raise CheckpointError(
            f"{path} is a damaged zip file ({error}); it was probably cut short, copy or download it again"
        ) from error
    size = path.stat().st_size
    stored = sum(entry.file_size for entry in listed if entry.compress_type == zipfile.ZIP_STORED)
    packed = sum(entry.file_size for entry in listed) - stored  # the code of TorchScript, which nothing here unpacks
    if stored > 1.1 * size or packed > LARGEST_HEADER:
        raise CheckpointError(
            f"{path} would unpack to {stored + packed:,} bytes from {size:,}: weights are not compressed, "
            "so it is refused as a decompression bomb"
        )
    if len(listed) > MOST_ENTRIES:
        raise CheckpointError(f"{path} holds {len(listed):,} entries, more than any checkpoint; refused")
    if not is_one_list:
        raise ambiguous(path, "its list of entries is not where its end says")
    return _named(path, listed)


def _is_one_list(file: BufferedReader, size: int, start: int, count: int) -> bool:
    """Whether the list of `count` entries starts at `start`, is followed by its end record, and is the only one.

    All readers search for the end record backwards from the end of the file. Then some take the list from where this
    record says, some from just before it, some from where a 64-bit record says, and some shift every place by the bytes
    before the zip file.
    """
    window = min(size, _LONGEST_END)
    file.seek(size - window)
    tail = file.read(window)
    found = tail.rfind(b"PK\5\6", 0, window - _END.size + 4)
    end = size - window + found
    _, _, _, here, total, length, place, _ = _END.unpack_from(tail, found)
    claimed = (here, total, length, place)
    if found >= _LOCATOR.size and tail[found - _LOCATOR.size :].startswith(b"PK\6\7"):
        end -= _LOCATOR.size + _END64.size
        _, _, at, _ = _LOCATOR.unpack_from(tail, found - _LOCATOR.size)
        if at != end or found < _LOCATOR.size + _END64.size:
            return False
        mark, rest, _, _, _, _, *wide = _END64.unpack_from(tail, found - _LOCATOR.size - _END64.size)
        most = (2**16 - 1, 2**16 - 1, _IN_64_BITS, _IN_64_BITS)
        if (mark, rest) != (b"PK\6\6", _END64.size - 12) or any(
            low not in (high, limit) for low, high, limit in zip(claimed, wide, most, strict=True)
        ):
            return False
        claimed = tuple(wide)
    return claimed == (count, count, end - start, start)


def _named(path: Path, listed: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    entries: dict[str, zipfile.ZipInfo] = {}
    seen: dict[str, str] = {}
    for entry in listed:
        name = entry.filename
        if name.startswith("/") or "\\" in name or ".." in name.split("/"):
            raise CheckpointError(f"{path} holds an entry that points outside of it ({shown(name)}); refused")
        if name in entries:
            raise CheckpointError(f"{path} holds two entries called {shown(name)}; refused")
        other = seen.setdefault(name.lower(), name)
        if other != name:
            raise ambiguous(path, f"its entries {shown(other)} and {shown(name)} differ only in case")
        if entry.external_attr & _FOLDER:  # torch reads nothing of such an entry, and returns uninitialised memory
            raise ambiguous(path, f"its entry {shown(name)} is marked as a folder")
        extra = _extra_fields(entry.extra)
        if _OTHER_NAME in extra or extra.count(_ZIP64) > 1:
            raise ambiguous(path, f"its entry {shown(name)} has two names or two sizes")
        entries[name] = entry
    return entries


def _extra_fields(extra: bytes) -> list[int]:
    found, place = [], 0
    while place + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, place)
        found.append(kind)
        place += 4 + length
    return found


class _Bounded:
    """A file whose reads are bounded: zipfile allocates whatever length the file claims for its list."""

    def __init__(self, file: BufferedReader) -> None:
        self.seek, self.tell, self._file = file.seek, file.tell, file

    def seekable(self) -> bool:
        return True

    def read(self, count: int = -1) -> bytes:
        content = self._file.read(count if 0 <= count <= LARGEST_HEADER else LARGEST_HEADER + 1)
        if len(content) > LARGEST_HEADER:
            raise ValueError("its list of entries is longer than any checkpoint's")
        return content


class Zip:
    """Entries of one zip file, read as raw bytes: checkpoints store them without compression.

    Names are without the folder that all entries are in.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.size = path, path.stat().st_size
        self.entries = entries_of(path)
        self.checked: set[str] = set()
        first = next(iter(self.entries))
        self.root = first.split("/", 1)[0] + "/" if "/" in first else ""
        self.starts = sorted(entry.header_offset for entry in self.entries.values())
        if len(set(self.starts)) != len(self.starts):
            raise ambiguous(path, "two of its entries are in one place")

    def has(self, name: str) -> bool:
        return self.root + name in self.entries

    def under(self, folder: str) -> list[str]:
        start = self.root + folder
        return [name.removeprefix(self.root) for name in self.entries if name.startswith(start)]

    def size_of(self, name: str) -> int:
        return self._entry(name).file_size

    def read(self, name: str, at_most: int) -> bytes:
        """The bytes of a small entry. Raises CheckpointError where it has more than `at_most`."""
        size = self.size_of(name)
        if size > at_most:
            raise CheckpointError(f"{self.path}: {shown(name)} has {size:,} bytes, more than any checkpoint's")
        return bytes(self.part(name, 0, size))

    def part(self, name: str, start: int, count: int) -> bytearray:
        """`count` bytes of an entry. The checksum of the whole entry is compared before the first one."""
        entry = self._entry(name)
        if name not in self.checked and entry.CRC:
            for _ in self.chunks(name):
                pass
        return read_exactly(self.path, self._begin(entry) + start, count)

    def chunks(self, name: str) -> Iterator[bytes]:
        """The bytes of an entry in order. Raises CheckpointError at the end where the checksum is wrong."""
        entry = self._entry(name)
        found = 0
        for chunk in chunks_of(self.path, self._begin(entry), entry.file_size):
            found = zlib.crc32(chunk, found)
            yield chunk
        if entry.CRC not in (0, found):  # torch.save can write 0 instead of a checksum
            raise CheckpointError(
                f"{self.path} is damaged: the checksum of {shown(name)} is wrong; copy or download it again"
            )
        self.checked.add(name)

    def _entry(self, name: str) -> zipfile.ZipInfo:
        entry = self.entries.get(self.root + name)
        if entry is None or entry.orig_filename != entry.filename:  # a null character ends some readers' names
            raise CheckpointError(
                f"{self.path} is a damaged checkpoint: it refers to {shown(name)}, which it does not hold"
            )
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 or entry.compress_size != entry.file_size:
            raise CheckpointError(
                f"{self.path} holds {shown(name)} compressed or encrypted, which no checkpoint needs; refused"
            )
        return entry

    def _begin(self, entry: zipfile.ZipInfo) -> int:
        """The position of the first byte of an entry. Raises CheckpointError where it reaches into the next entry."""
        if not 0 <= entry.header_offset <= self.size - _LOCAL.size:
            raise self._damaged()
        mark, name_length, extra_length = _LOCAL.unpack(read_exactly(self.path, entry.header_offset, _LOCAL.size))
        begin = entry.header_offset + _LOCAL.size + name_length + extra_length
        later = bisect_right(self.starts, entry.header_offset)
        if mark != b"PK\3\4" or begin + entry.file_size > (*self.starts[later : later + 1], self.size)[0]:
            raise self._damaged()
        return begin

    def _damaged(self) -> CheckpointError:
        return CheckpointError(f"{self.path} is a damaged zip file; copy or download it again")
