from dataclasses import dataclass

import pytest

from lsa_cli.errors import UsageError
from lsa_cli.registry import Registry, build, load_attribute, parse_number, parse_spec


@pytest.mark.parametrize(
    ("text", "value"), [("8/255", 8 / 255), ("1e-3", 1e-3), (0.5, 0.5), ("0.031", 0.031), (3, 3), ("-1/4", -0.25)]
)
def test_numbers(text, value):
    assert parse_number(text) == value


@pytest.mark.parametrize("text", ["", "eight", "8/0", "nan", "inf", "1/2/3", True, None])
def test_what_is_no_number(text):
    with pytest.raises(UsageError, match="number"):
        parse_number(text)


def test_specs():
    assert parse_spec("pgd:steps=20,step-size=1/255", "attack") == ("pgd", {"steps": "20", "step_size": "1/255"})
    assert parse_spec("fgsm", "attack") == ("fgsm", {})
    with pytest.raises(UsageError, match="given twice"):
        parse_spec("pgd:steps=1,steps=2", "attack")
    with pytest.raises(UsageError, match="key=value"):
        parse_spec("pgd:steps", "attack")


@dataclass(frozen=True)
class Thing:
    given: str
    steps: int = 1
    size: float | None = None
    on: bool = True


def test_build_converts_by_type():
    assert build(Thing, {"steps": "4", "size": "1/4", "on": "false"}, "x", given="a") == Thing("a", 4, 0.25, False)
    assert build(Thing, {"size": "none"}, "x", given="a").size is None


@pytest.mark.parametrize(
    ("options", "says"),
    [({"step": "4"}, "did you mean 'steps'"), ({"steps": "1.5"}, "whole number"), ({"on": "maybe"}, "true or false")],
)
def test_build_refuses(options, says):
    with pytest.raises(UsageError, match=says):
        build(Thing, options, "x", given="a")


def test_a_registry_suggests_and_keeps_names_unique():
    registry = Registry("attack")
    registry.register("pgd")(Thing)
    with pytest.raises(UsageError, match="did you mean 'pgd'"):
        registry.get("pdg")
    with pytest.raises(UsageError, match="registered twice"):
        registry.register("pgd")(Thing)


def test_attributes_of_modules_and_files(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def make():\n    return 7\n")
    assert load_attribute(f"{file}:make", "--arch")() == 7
    with pytest.raises(UsageError, match="did you mean 'make'"):
        load_attribute(f"{file}:mak", "--arch")
    with pytest.raises(UsageError, match="there is no file"):
        load_attribute(f"{tmp_path}/none.py:make", "--arch")
    with pytest.raises(UsageError, match="cannot import"):
        load_attribute("no_such_package.x:make", "--arch")
    broken = tmp_path / "broken.py"
    broken.write_text("1/0\n")
    with pytest.raises(UsageError, match="does not run: ZeroDivisionError"):
        load_attribute(f"{broken}:make", "--arch")


@dataclass(frozen=True)
class Demanding:
    given: str
    strength: float


def test_an_option_without_a_default_must_be_given():
    with pytest.raises(UsageError, match="x: strength must be given, as strength="):
        build(Demanding, {}, "x", given="a")
    assert build(Demanding, {"strength": "1/2"}, "x", given="a") == Demanding("a", 0.5)


def test_what_users_do_not_type_cannot_be_typed():
    with pytest.raises(UsageError, match="unknown option 'given'"):
        build(Thing, {"given": "b"}, "x", given="a")


def test_a_file_runs_once_however_often_it_is_named(tmp_path):
    file = tmp_path / "counted.py"
    file.write_text(
        "import pathlib\np = pathlib.Path(__file__).with_suffix('.runs')\n"
        "p.write_text(p.read_text() + 'x' if p.exists() else 'x')\nvalue = 1\n"
    )
    for _ in range(3):
        assert load_attribute(f"{file}:value", "--arch") == 1
    assert file.with_suffix(".runs").read_text() == "x"
