"""Import Python code of the user: modules are found as for `python FILE.py`, and sys.path is restored afterwards.

Each file has a `Home`. Within it, the folder of the file comes first on sys.path and the working directory last. Modules
from the folder of a file belong to this file alone: two files, each with its own `common.py`, do not mix them up.
"""

import importlib
import importlib.util
import os
import sys
import threading
import types
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from lsa_cli.errors import UsageError
from lsa_cli.files import digest_of, refuse_irregular

_DEEPEST = 6  # most levels of packages above a file
_lock = threading.RLock()


class Home:
    """The folders from which a file imports, and the modules that came from its own folders.

    own: folders that come first on sys.path (last: at its end); no other file sees their modules. main: the module that
    stays in sys.modules, where dataclasses and pickle look it up. A home can be entered again, also within itself and
    from several threads. sources: a digest of each file of these modules and of main, from when it was imported.
    """

    def __init__(self, own: tuple[Path, ...] = (), main: str = "", last: bool = False) -> None:
        self.own, self.main, self.last = tuple(dict.fromkeys(own)), main, last
        self.modules: dict[str, types.ModuleType] = {}
        self.sources: dict[str, str] = {}
        self._names = {name for folder in self.own for name in _importable(folder)}
        self._depth = 0
        self._before: set[str] = set()
        self._hidden: dict[str, types.ModuleType] = {}
        self._added: list[str] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> "Home":
        return self

    def __enter__(self) -> "Home":
        with _lock:
            self._depth += 1
            if self._depth == 1:
                found = [name for name in sys.modules if name.partition(".")[0] in self._names] if self._names else []
                self._hidden = {name: sys.modules[name] for name in found if self._is_in_the_way(name)}
                for name in self._hidden:
                    del sys.modules[name]
                sys.modules.update(self.modules)
                self._before = set(sys.modules)
                own = [str(folder) for folder in self.own]
                here = [os.getcwd()] if not {"", os.getcwd()} & set(sys.path) else []
                first, last = ([], here + own) if self.last else (own, here)
                sys.path[:] = [*first, *sys.path, *last]
                self._added = own + here
        return self

    def __exit__(self, *_: object) -> None:
        with _lock:
            self._depth -= 1
            if self._depth:
                return
            for folder in self._added:
                if folder in sys.path:  # the user's code may have changed it
                    sys.path.remove(folder)
            new = {name: module for name, module in sys.modules.items() if name not in self._before}
            own = {name: module for name, module in new.items() if name != self.main and self._owns(name)}
            self.modules |= own
            for module in own.values():
                self.sources |= _source_of(module)
            for name in self.modules:
                sys.modules.pop(name, None)
            sys.modules.update(self._hidden)

    def _is_in_the_way(self, name: str) -> bool:
        """Whether a loaded module has the name of one of this home, and is neither that one nor installed."""
        return not _is_installed(name, sys.modules[name]) and not self._owns(name)

    def _owns(self, name: str) -> bool:
        """Whether the module or its package is in one of the own folders."""
        top = sys.modules.get(name.partition(".")[0])
        place = _location(top)
        return place is not None and place.parent in self.own and not _is_installed(name, top)


def _importable(folder: Path) -> Iterator[str]:
    try:
        for entry in os.scandir(folder):
            if entry.name.endswith(".py"):
                yield entry.name.removesuffix(".py")
            elif entry.name.isidentifier() and entry.is_dir():
                yield entry.name
    except OSError:
        return


def _location(module: types.ModuleType | None) -> Path | None:
    """The file of a module or the folder of a package."""
    path = list(getattr(module, "__path__", None) or [])
    place = path[0] if path else getattr(module, "__file__", None)
    return Path(place).resolve() if isinstance(place, str) else None


def _source_of(module: types.ModuleType) -> dict[str, str]:
    """The file of a module and its digest; nothing for a module without a file that can be read."""
    file = getattr(module, "__file__", None)
    try:
        return {os.path.realpath(file): digest_of(file)} if isinstance(file, str) else {}
    except OSError:
        return {}


def _is_installed(name: str, module: types.ModuleType | None) -> bool:
    """Whether the module is of Python itself, of an installed package or of lsa: these are never loaded twice."""
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names or top in ("lsa_cli", "__main__"):
        return True
    place = _location(module)
    return place is None or not {"site-packages", "dist-packages"}.isdisjoint(place.parts)


# ---- files -------------------------------------------------------------------------------------------------

_loaded: dict[Path, tuple[types.ModuleType, Home]] = {}


def load_python_file(path: str | Path, what: str) -> types.ModuleType:
    """Run a Python file that the user named, once, and return it as a module.

    A file beside an __init__.py, or with an import `from .`, is imported as a part of its package. Raises UsageError when
    it is missing or fails; `what` names the option in the message.
    """
    file = Path(os.path.realpath(path))
    if file in _loaded:
        return _loaded[file][0]
    try:
        refuse_irregular(file)
    except FileNotFoundError:
        raise UsageError(f"{what}: there is no file {path}") from None
    except OSError as error:
        raise UsageError(f"{what}: {path} cannot be read: {error.strerror or error}") from error
    if file.suffix != ".py":
        raise UsageError(f"{what}: {path} is not a Python file")
    importlib.invalidate_caches()
    packages = _packages_of(file)
    while True:
        root = file.parents[packages]
        name = _name_in_package(file, packages) if packages else f"lsa_user_{file.stem}_{len(_loaded)}"
        home = Home((file.parent, root), name)
        try:
            with home:
                module = importlib.import_module(name) if packages else _run_alone(file, name)
            break
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            if _needs_more_packages(error) and packages < min(_DEEPEST, len(file.parents) - 1):
                packages += 1
                continue
            raise UsageError(
                f"{what}: {path} does not run: {type(error).__name__}: {error}{_advice(error, file)}"
            ) from error
    home.sources |= _source_of(module)
    _loaded[file] = (module, home)
    return module


def _packages_of(file: Path) -> int:
    """The number of folders above the file that have an __init__.py."""
    count = 0
    while count < _DEEPEST and (file.parents[count] / "__init__.py").is_file():
        count += 1
    return count


def _needs_more_packages(error: BaseException) -> bool:
    return isinstance(error, ImportError) and "relative import" in str(error)


def _advice(error: BaseException, file: Path) -> str:
    if not isinstance(error, ModuleNotFoundError):
        return ""
    return f"; install it, or add its folder to PYTHONPATH ({file.parent} and the working directory are searched)"


def _run_alone(file: Path, name: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _name_in_package(file: Path, packages: int) -> str:
    parts = [folder.name for folder in reversed(file.parents[:packages])]
    return ".".join([*parts, *([] if file.stem == "__init__" else [file.stem])])


# ---- names -------------------------------------------------------------------------------------------------

_working_directory = Home()


def is_file(module_name: str) -> bool:
    """Whether the name is a path, not the dotted name of a module."""
    return module_name.endswith(".py") or "/" in module_name


def import_named(module_name: str, what: str) -> types.ModuleType:
    """`pkg.mod` or `path/to/file.py` -> the module. The user named it, so its code can run."""
    if is_file(module_name):
        return load_python_file(module_name, what)
    try:
        with _working_directory:
            return importlib.import_module(module_name)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise UsageError(f"{what}: cannot import {module_name}: {type(error).__name__}: {error}") from error


def home_of(spec: str) -> AbstractContextManager[object]:
    """Within: the code that `spec` names (pkg.mod:name, file.py:name) finds its imports as when it was loaded."""
    module_name = spec.rpartition(":")[0]
    if not is_file(module_name):
        return _working_directory
    file = Path(module_name).resolve()
    return _loaded[file][1] if file in _loaded else nullcontext()


def sources_of(module_name: str) -> dict[str, str]:
    """The files of `pkg.mod` or `path/to/file.py` that have been imported, each with its digest.

    Of a file: itself and the modules that it has imported from its own folder or package. Of pkg.mod: the modules of pkg.
    """
    if not is_file(module_name):
        top = module_name.partition(".")[0]
        of_package = [(name, module) for name, module in sys.modules.items() if name.partition(".")[0] == top]
        found: dict[str, str] = {}
        for name, module in of_package:
            if not _is_installed(name, module):
                found |= _source_of(module)
        return {_from_here(path): digest for path, digest in found.items()}
    file = os.path.realpath(module_name)
    home = _loaded[Path(file)][1]
    folder = os.path.dirname(module_name)

    def named(path: str) -> str:
        """As from the name that the user gave, so that it holds on another machine, too."""
        name = os.path.normpath(os.path.join(folder, os.path.relpath(path, os.path.dirname(file))))
        return name if os.path.realpath(name) == path else path

    return {named(path): digest for path, digest in home.sources.items()}


def _from_here(path: str) -> str:
    """The path from the working directory, for a file below it."""
    here = os.path.realpath(os.getcwd())
    return os.path.relpath(path, here) if Path(path).is_relative_to(here) else path


def can_import(name: str) -> bool:
    """Whether there is a module `name`; it is not imported."""
    if name in sys.modules:
        return True
    with _working_directory:
        return importlib.util.find_spec(name) is not None
