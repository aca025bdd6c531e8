"""Networks that were pickled whole: rebuilt from installed classes without unpickling, or unpickled when trusted."""

import enum
import functools
import importlib
import pickle
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lsa_cli.errors import CheckpointError, summary_of
from lsa_cli.models.exported import ExportedNetwork
from lsa_cli.models.pickles.symbols import INSTALLED, Call, Global, Members, TensorSpec
from lsa_cli.models.wrappers import unwrap_parts

# Functions that networks keep as attributes, mostly activations. Not those of torchvision and timm: some load files.
_KNOWN_FUNCTIONS = ("torch.nn.functional.", "torch._C._nn.")
_KNOWN_OBJECTS = {str(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)} | {
    "torch.flatten": torch.flatten, "torch.relu": torch.relu, "torch.tanh": torch.tanh,
}  # fmt: skip
_PARALLEL = (
    "torch.nn.parallel.data_parallel.DataParallel",
    "torch.nn.parallel.distributed.DistributedDataParallel",
)
_GETATTR = ("__builtin__.getattr", "builtins.getattr")


class _Unknown(Exception):
    """The network needs code of the file to be rebuilt."""


def rebuild(symbol: Call, load: Callable[[TensorSpec], torch.Tensor]) -> tuple[nn.Module | None, str]:
    """A module that was pickled whole, if all its classes and functions are installed ones of torch, torchvision or timm.

    Nothing is unpickled and no constructor is called. As in unpickling, objects are made empty and get their attributes,
    here from symbols. Returns (module, "") or (None, what prevents it).
    """
    symbol = _without_parallel(symbol)
    try:
        module = _Rebuilder(load).value(symbol)
    except _Unknown as error:
        return None, str(error)
    except CheckpointError:
        raise
    except Exception as error:  # an installed class can raise anything for attributes that it does not expect
        raise CheckpointError(
            "the network in the file is damaged, or of a version that is not installed "
            f"({summary_of(error)}); name it with --arch to use its weights alone"
        ) from error
    return (module, "") if isinstance(module, nn.Module) else (None, type(module).__name__)


def _without_parallel(symbol: Call) -> Call:
    """The network inside DataParallel and DistributedDataParallel, which cannot be built without their devices."""
    while symbol.class_name in _PARALLEL and isinstance(symbol.state, dict):
        modules = symbol.state.get("_modules")
        inner = modules.get("module") if isinstance(modules, dict) else None
        if not isinstance(inner, Call):
            break
        symbol = inner
    return symbol


class _Rebuilder:
    def __init__(self, load: Callable[[TensorSpec], torch.Tensor]) -> None:
        self.load = load
        self.made: dict[int, Any] = {}

    def value(self, symbol: Any) -> Any:
        if symbol is None or isinstance(symbol, (bool, int, float, str, bytes)):
            return symbol
        if id(symbol) in self.made:
            return self.made[id(symbol)]
        if isinstance(symbol, dict):
            made: Any = OrderedDict()
            self.made[id(symbol)] = made
            made.update((key, self.value(item)) for key, item in symbol.items())
        elif isinstance(symbol, list):
            made = self.made[id(symbol)] = []
            made.extend(map(self.value, symbol))
        elif isinstance(symbol, tuple):
            made = tuple(map(self.value, symbol))
        elif isinstance(symbol, Members):
            made = set(map(self.value, symbol.items))
        elif isinstance(symbol, TensorSpec):
            made = self.load(symbol)
        elif isinstance(symbol, Global):
            made = _function(symbol)
        elif isinstance(symbol, Call):
            return self.call(symbol)
        else:
            raise _Unknown(type(symbol).__name__)
        self.made[id(symbol)] = made
        return made

    def call(self, symbol: Call) -> Any:
        name = symbol.class_name
        if name == "functools.partial" and isinstance(symbol.state, tuple) and len(symbol.state) == 4:
            function, arguments, keywords = (self.value(part) for part in symbol.state[:3])
            made: Any = functools.partial(function, *arguments, **keywords)
        elif name == "torch.device":
            made = torch.device("cpu")
        elif name in _GETATTR:
            made = _member(symbol)
        else:
            kind = _class(symbol)
            if issubclass(kind, enum.Enum):
                made = kind(*(self.value(part) for part in symbol.arguments))
            elif symbol.arguments or symbol.items:
                raise _Unknown(f"{name} with arguments")
            else:
                made = self.made[id(symbol)] = kind.__new__(kind)
                self.give_state(made, symbol)
        self.made[id(symbol)] = made
        return made

    def give_state(self, module: nn.Module, symbol: Call) -> None:
        if not isinstance(symbol.state, dict):
            raise _Unknown(f"{symbol.class_name} without attributes")
        state = dict(self.value(symbol.state))
        for key, value in state.items():
            if key.endswith("_hooks") and value:
                raise _Unknown(f"{symbol.class_name} with hooks")
        state["_parameters"] = type(state["_parameters"])(
            (name, tensor if tensor is None else nn.Parameter(tensor, tensor.is_floating_point()))
            for name, tensor in state["_parameters"].items()
        )
        for key, kinds in (("_modules", nn.Module), ("_buffers", torch.Tensor)):
            if not all(item is None or isinstance(item, kinds) for item in state[key].values()):
                raise _Unknown(f"{symbol.class_name} with odd {key[1:]}")
        module.__setstate__(state)


def _class(symbol: Call) -> type:
    function = symbol.function
    if not isinstance(function, Global):
        raise _Unknown("a call of what another call returns")
    found = _installed(function, INSTALLED)
    if not _is_network(found) and not (isinstance(found, type) and issubclass(found, enum.Enum)):
        raise _Unknown(str(function))
    return found


def _member(symbol: Call) -> enum.Enum:
    """The member that getattr(enumeration, name) means: some versions of Python (3.11.2) pickle members so."""
    owner, name = symbol.arguments if len(symbol.arguments) == 2 else (None, None)
    found = _installed(owner, INSTALLED) if isinstance(owner, Global) else None
    if not (isinstance(found, type) and issubclass(found, enum.Enum) and str(name) in found.__members__):
        raise _Unknown(symbol.class_name)
    return found[str(name)]


def _is_network(found: Any) -> bool:
    """Whether it is a class of networks. Not GraphModule, which torchvision has: it compiles code from its attributes."""
    return isinstance(found, type) and issubclass(found, nn.Module) and not issubclass(found, torch.fx.GraphModule)


def _function(symbol: Global) -> Any:
    if str(symbol) in _KNOWN_OBJECTS:
        return _KNOWN_OBJECTS[str(symbol)]
    found = _installed(symbol, (*INSTALLED, *_KNOWN_FUNCTIONS))
    is_function = callable(found) and f"{symbol.module}.".startswith(_KNOWN_FUNCTIONS)
    if not _is_network(found) and (not is_function or symbol.name.startswith("_")):
        raise _Unknown(str(symbol))
    return found


def _installed(symbol: Global, packages: tuple[str, ...]) -> Any:
    """The object that a global names, if one of these packages defines it and does not only import it."""
    if not f"{symbol.module}.".startswith(packages) or not symbol.name.isidentifier() or symbol.name.startswith("__"):
        raise _Unknown(str(symbol))
    try:
        module = sys.modules.get(symbol.module) or importlib.import_module(symbol.module)
        found = getattr(module, symbol.name)
    except (ImportError, AttributeError) as error:
        raise _Unknown(f"{symbol} (not in the installed packages)") from error
    home = getattr(found, "__module__", None) or symbol.module
    if not f"{home}.".startswith(packages):
        raise _Unknown(str(symbol))
    return found


class Program(nn.Module):
    """A TorchScript program as a network. Its layers are not visible, and its mode is fixed."""

    def __init__(self, program: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self._program = (program,)  # in a tuple, so that it is not registered as a submodule

    @property
    def program(self) -> Callable[[torch.Tensor], Any]:
        return self._program[0]

    def forward(self, x: torch.Tensor) -> Any:
        return self._program[0](x)


def run_trusted(path: Path, kind: str, keys: tuple[str, ...], device: torch.device) -> nn.Module:
    """Load a file whose code the user trusts: a network pickled whole, a TorchScript or an exported program.

    keys: lead to the network in a pickle. device: of a program. Raises CheckpointError when the file does not load, or
    holds no network.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # every use of TorchScript warns that it is deprecated
            if kind == "torchscript":
                return Program(torch.jit.load(path, map_location=device).eval())
            if kind == "torch-export":
                return ExportedNetwork(torch.export.load(path)).to(device)
            if kind == "pickle":
                with path.open("rb") as file:
                    loaded = pickle.load(file)
            else:
                loaded = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:
        advice = (
            "the class was defined in the script that saved it, and is not importable here: name the network with --arch"
            if "__main__" in str(error)
            else "its classes must be importable here: add the folder that holds them to PYTHONPATH"
        )
        raise CheckpointError(f"{path} does not load even when trusted: {summary_of(error)}; {advice}") from error
    for key in keys:
        if isinstance(loaded, Mapping):
            loaded = next((item for name, item in loaded.items() if str(name) == key), None)
        elif isinstance(loaded, (list, tuple)):
            loaded = loaded[int(key)]
    if not isinstance(loaded, nn.Module):
        raise CheckpointError(f"{path} holds {type(loaded).__name__}, not a network; give its architecture with --arch")
    return unwrap_parts(loaded)
