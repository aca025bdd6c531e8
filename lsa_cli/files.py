"""Reading only regular files: a pipe may never start or end, and a device has no end."""

import errno
import hashlib
import os
import re
import stat
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import IO, BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# What a shell passes for `<(...)` and `< file`; such a pipe is open already, so opening it does not wait.
_HANDED_OVER = re.compile(r"/dev/stdin|(/dev|/proc/self|/proc/[0-9]+)/fd/[0-9]+")
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_PART = 1 << 20
# Bytes; of a larger file, size and time of the last change stand for the content (our choice).
_LARGEST_HASHED = 1 << 30


class IrregularFile(OSError):
    """A pipe, a device, a socket or a folder instead of a file."""

    def __init__(self, path: str | Path, mode: int) -> None:
        what = next((words for is_kind, words in _KINDS if is_kind(mode)), "no regular file")
        super().__init__(errno.EINVAL, f"it is {what}; give a regular file", str(path))


def refuse_irregular(path: str | Path) -> None:
    """Raises IrregularFile for anything but a regular file, and OSError where there is none."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise IrregularFile(path, mode)


def digest_of(path: str | Path) -> str:
    """What tells the content of a file from another one: its SHA-256, or above 1 GiB its size and the time of its last change.

    Raises OSError where it cannot be read.
    """
    refuse_irregular(path)
    status = os.stat(path)
    if status.st_size > _LARGEST_HASHED:
        return f"{status.st_size} bytes, changed at {status.st_mtime_ns} ns"
    return _sha256(os.path.realpath(path), (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))


@lru_cache(maxsize=256)
def _sha256(path: str, status: tuple[int, ...]) -> str:
    """status: of the file, so that a file that has changed is read again. All audits of a fleet have the same data."""
    return sha256_of_file(path)


def sha256_of_file(path: str | Path) -> str:
    """In hexadecimal digits. Raises OSError where it cannot be read."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def changed_files(digests: dict[str, str]) -> list[str]:
    """Those of the files that no longer have the content of these digests, or are gone."""

    def now(path: str) -> str | None:
        try:
            return digest_of(path)
        except OSError:
            return None

    return [path for path, digest in digests.items() if now(path) != digest]


def open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file for reading bytes. Raises IrregularFile for anything else, without waiting; or OSError."""
    refuse_irregular(path)  # before opening it, which is an action of some devices
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0))
    file = os.fdopen(descriptor, "rb")
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):  # the file was replaced meanwhile
        file.close()
        raise IrregularFile(path, mode)
    return file


def read_regular(path: str | Path, largest: int, pipes: bool = False) -> bytes:
    """The content, of at most `largest` bytes. Raises IrregularFile or OSError.

    pipes: also read a pipe that the shell has opened: /dev/stdin, or /dev/fd/N of `<(...)`.
    """
    status = os.stat(path)
    mode = status.st_mode
    if stat.S_ISREG(mode) and status.st_size > largest:
        raise _too_large(path, largest)
    handed_over = pipes and _HANDED_OVER.fullmatch(str(path)) and (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode))
    with open(path, "rb", buffering=0) if handed_over else open_regular(path) as file:
        content = bytearray()
        while part := file.read(_PART):  # in parts, so that Ctrl-C works
            content += part
            if len(content) > largest:
                raise _too_large(path, largest)
    return bytes(content)


def temporary_beside(target: Path) -> Path:
    """The path at which a file is written before it replaces `target`; its name is short enough for any file system."""
    return target.with_name(f"{_temporary_stem(target)}{os.getpid()}.tmp")


def remove_temporaries(target: Path) -> None:
    """Remove what killed processes have left of writing `target`. To be called when no process writes it."""
    stem = _temporary_stem(target)
    with suppress(FileNotFoundError):  # the folder
        for file in target.parent.iterdir():
            if file.name.startswith(stem) and re.fullmatch(r"[0-9]+\.tmp", file.name[len(stem) :]):
                file.unlink(missing_ok=True)


def _temporary_stem(target: Path) -> str:
    """The beginning of the names of its temporary files, which no other file has: a long name is shortened to its hash."""
    name = target.name
    if len(name) > 40:
        name = f"{name[:31]}-{hashlib.sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"
    return f".{name}."


def claim(path: Path) -> IO[bytes]:
    """The file, locked until it is closed or this process ends. It and its folder are created where they are missing.

    Its owner may delete it before closing it. Raises BlockingIOError where another process, or another claim of this one, holds
    it. On Windows it is opened and not locked.
    """
    while True:
        try:
            lock = path.open("ab")
        except FileNotFoundError:  # not created yet, or its last owner has removed its folder
            with suppress(FileExistsError):  # another process has created it
                path.parent.mkdir(parents=True, exist_ok=True)
            continue
        if fcntl is None:
            return lock
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock.fileno()).st_ino == os.stat(path).st_ino:
                return lock
        except FileNotFoundError:  # its last owner has removed it
            pass
        except OSError:
            lock.close()
            raise
        lock.close()


def is_irregular(path: str | Path) -> bool:
    """Whether the path exists and is neither a regular file nor a link to one."""
    return os.path.exists(path) and not os.path.isfile(path)


def write_irregular(path: str | Path, content: bytes) -> None:
    """Write to a pipe or a device. Raises OSError for a pipe without a reader, instead of waiting for one."""
    with os.fdopen(open_without_waiting(path, os.O_WRONLY), "wb") as file:
        file.write(content)


def open_without_waiting(path: str | Path, flags: int) -> int:
    """A descriptor to write to. Raises OSError for a pipe without a reader, instead of waiting for one."""
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise OSError(errno.ENXIO, "no process reads this pipe", str(path)) from error
        raise
    os.set_blocking(descriptor, True)
    return descriptor


def _too_large(path: str | Path, largest: int) -> OSError:
    return OSError(errno.EFBIG, f"it is larger than {largest:,} bytes", str(path))
