"""Which part of lsa_cli may import which: read from the source, imports inside functions included."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lsa_cli"
# Each part may import those to its right; parts within one bracket are on one floor.
FLOORS = [
    {"__main__"},
    {"cli"},
    {"fleet"},
    {"hardening"},
    {"auditing"},
    {"models", "config"},
    {"proofs"},
    {"attacks", "layers", "measures", "data"},
    {"settings"},
    {"failures"},
    {"report"},
    {"commands"},
    {"registry"},
    {"imports"},
    {"distributed"},
    {"_version", "errors", "files", "stats", "wording"},
]
HEAVY = {"torch", "torchvision"}
WITHOUT_TORCH = (
    "report", "config", "settings", "commands", "registry", "imports", "errors", "files", "stats", "wording",
)  # fmt: skip


def part(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    """Every module that a file imports anywhere."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            if node.module == "lsa_cli":
                yield from (f"lsa_cli.{alias.name}" for alias in node.names)


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py" or path.parent != PACKAGE)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    mine = part(path)
    for module in imports(path):
        names = module.split(".")
        if names[0] == "lsa_cli" and len(names) > 1 and names[1] in floor and names[1] != mine:
            assert floor[names[1]] > floor[mine], f"{path.name} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_reports_need_no_torch_and_nobody_needs_click(path):
    tops = {module.split(".")[0] for module in imports(path)}
    assert "click" not in tops
    if part(path) in WITHOUT_TORCH:
        assert not tops & HEAVY


def test_every_part_has_a_floor():
    known = set().union(*FLOORS)
    assert {part(path) for path in FILES} <= known


FORBIDDEN = {
    "attacks": {"models", "data", "layers", "measures", "auditing", "report", "config", "cli"},
    "report": {"attacks", "models", "auditing", "layers", "measures", "data", "config", "cli"},
    "layers": {"attacks", "models", "auditing", "measures", "data", "report", "config", "cli"},
    "measures": {"attacks", "models", "auditing", "layers", "data", "report", "config", "cli"},
    "proofs": {"models", "auditing", "layers", "measures", "data", "report", "config", "cli"},
    "models": {"auditing", "cli"},
    "auditing": {"hardening", "cli"},
    "hardening": {"cli"},
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_what_a_part_must_never_know(name):
    mine = [path for path in FILES if part(path) == name]
    assert mine
    for path in mine:
        known = {module.split(".")[1] for module in imports(path) if module.startswith("lsa_cli.")}
        assert not known & FORBIDDEN[name], path


def test_reading_a_report_and_a_configuration_loads_no_torch():
    """The imports as they happen: what the files above import in turn counts too."""
    wanted = [
        "lsa_cli." + str(path.relative_to(PACKAGE).with_suffix("")).replace("/", ".").removesuffix(".__init__")
        for path in FILES
        if part(path) in WITHOUT_TORCH
    ]
    code = "import importlib, sys\n" + "".join(f"importlib.import_module({name!r})\n" for name in wanted)
    code += "print(sorted({'torch', 'torchvision', 'click'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_the_package_itself_imports_only_its_version():
    """Names of the public interface are imported when they are first used."""
    body = ast.parse((PACKAGE / "__init__.py").read_text()).body
    found = [node.module for node in body if isinstance(node, ast.ImportFrom)]
    assert found == ["typing", "lsa_cli._version"]
    for path in FILES:
        names = {module.split(".")[1] for module in imports(path) if module.startswith("lsa_cli.")}
        assert names <= set().union(*FLOORS), path


MOST_LINES, MOST_LINES_OF_A_FUNCTION = 400, 60


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_fit_on_a_few_pages(path):
    text = path.read_text()
    assert len(text.splitlines()) <= MOST_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= MOST_LINES_OF_A_FUNCTION, f"{node.name}: {lines}"
