"""A setting is declared once: the command line, lsa.yaml and Python take the same names and read them alike."""

import os
import subprocess
import sys
import typing
from pathlib import Path

import jsonschema
import pytest
import torch
import typer
import yaml
from torch import nn
from typer.testing import CliRunner

import lsa_cli
from lsa_cli.auditing.early import DEFAULT_ALPHA
from lsa_cli.auditing.plan import make_plan
from lsa_cli.auditing.presets import DEFAULT_LIMIT, QUICK_LIMIT, with_preset
from lsa_cli.cli import options as o
from lsa_cli.config import configurations, merged, read_config
from lsa_cli.errors import UsageError
from lsa_cli.hardening.recipes import recipe_for
from lsa_cli.hardening.rift import RobustCriticalFineTuning
from lsa_cli.settings import IN_PYTHON, AuditSettings, HardenSettings, settings_from
from lsa_cli.settings.declare import IN_A_FILE, settings_of
from lsa_cli.settings.schema import config_schema

MOON = Path(__file__).parents[1] / "sample_models" / "moon_mlp.pt"
# What is given where the type alone does not say what a value looks like.
VALUES = {
    "arch_args": "width=3", "limit": "30", "eps": "8/255", "step_size": "1e-3", "eps_grid": "0,1/255",
    "batch_size": "auto", "budget": "90s", "input_size": "64", "fail_under": "robust=0.4", "fail_on": "doubtful",
    "match_classes": "1,0", "schedule": "cosine", "augment": "none", "weight_decay": "0", "val_fraction": "1/5", "clip": "0", "gamma": "0.5",
}  # fmt: skip


def options_of(kind):
    return [(one, option) for one in settings_of(kind) for option in one.options if one.scope in IN_A_FILE]


def value_of(one, option):
    if option.flag:
        return True
    if one.is_whole:
        return 3
    if option.key in VALUES:
        return VALUES[option.key]
    bare = typing.get_args(one.type)[0] if typing.get_origin(one.type) is typing.Annotated else one.type
    if typing.get_origin(bare) is typing.Literal:
        return typing.get_args(bare)[-1]
    return "0.3" if bare is float else "word"


def typed(kind, option, value):
    """The settings that a command gets for this option."""
    taken = []

    @o.takes("seed", hardening=True) if kind is HardenSettings else o.takes()
    def command(given: AuditSettings) -> None:
        taken.append(given)

    app = typer.Typer()
    app.command()(command)
    words = [option.declarations[0].partition("/")[0]] + ([] if option.flag else [str(value)])
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    return taken[0]


ALL = [(kind, one, option) for kind in (AuditSettings, HardenSettings) for one, option in options_of(kind)]


@pytest.mark.parametrize(("kind", "one", "option"), ALL, ids=[f"{k.__name__[0]}-{p.key}" for k, _, p in ALL])
def test_every_option_is_a_key_and_an_argument(tmp_path, kind, one, option):
    value = value_of(one, option)
    content = {option.name: value}
    content = {"harden": content} if kind is HardenSettings else content
    (tmp_path / "lsa.yaml").write_text(yaml.safe_dump(content))
    in_file = read_config(tmp_path / "lsa.yaml")
    jsonschema.validate(content, config_schema())
    part = in_file.harden if kind is HardenSettings else in_file
    assert getattr(part, one.name) is not None
    own = {option.key: value}
    own = {"harden": own} if kind is HardenSettings else own
    if one.scope in IN_PYTHON:
        assert settings_from(own, IN_PYTHON) == in_file
    else:
        with pytest.raises(UsageError, match="belongs to the command line"):
            settings_from(own, IN_PYTHON)
    assert typed(kind, option, value) == in_file


def test_each_option_of_a_command_has_help_in_its_panel():
    for _, one, option in ALL:
        assert option.help.endswith((".", ")")), option.name
        assert o.annotation(one, option).__metadata__[0].rich_help_panel == one.panel


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ({"quick": True, "full": True}, "quick and full set the same thing"),
        ({"n": 3, "limit": 4}, "n and limit set the same thing"),
        ({"epss": 1}, "unknown option 'epss': did you mean 'eps'"),
        ({"harden": {"epocs": 1}}, "unknown option of harden 'epocs': did you mean 'epochs'"),
        ({"resume": True}, "resume: belongs to the command line"),
        ({"quick": "perhaps"}, "quick: must be true or false, not 'perhaps'"),
        ({"seed": -1}, "seed: must be at least 0, not -1"),
        ({"seed": True}, "seed: must be a number, not true"),
        ({"steps": 2.5}, "steps: must be a whole number, not 2.5"),
        ({"attack": 3}, "attack: must be a list, not 3"),
        ({"fail_under": {"rubost": 0.4}}, "did you mean 'robust'"),
        ({"fail_under": "robust=0.4", "gate": {"robust": 0.5}}, "robust is given twice"),
        ({"input_size": 10**6}, "number of pixels up to"),
        ({"harden": {"warmup": 1}}, "warmup: must be below 1, not 1"),
    ],
)
def test_what_python_refuses(text, says):
    with pytest.raises(UsageError, match=says):
        lsa_cli.audit(MOON, **text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("seed: 1\nqick: true\n", "line 2: unknown key 'qick': did you mean 'quick'"),
        ("quick: true\nfull: true\n", "line 2: --quick and --full set the same thing"),
        ("seed: 1\nfail-under:\n  robust: 0.4\n  clean: 40\n", "line 4: the limit clean=40"),
        ("seed: 1\nnproc: 2\n", "line 2: nproc: belongs to the command line"),
        ("seed: 1\ncheckpoints:\n  a.pt:\n    epss: 1\n", "line 4: unknown key 'epss': did you mean 'eps'"),
        ("checkpoints:\n  a.pt: {eps: 1}\n  b.pt: {html: x}\n", "line 3: checkpoints: b.pt: html: belongs to an audit"),
        ("checkpoints:\n  a.pt: 3\n", "line 2: checkpoints: a.pt: must be a mapping, such as {eps: 4/255}, not 3"),
        ("seed: 1\nhistory: {a: 1, b: x}\n", "line 2: history: must be numbers for all globs, dates for all, or texts"),
        ("harden:\n  epochs: 1\n  batch-size: 0\n", "line 3: harden: batch-size: must be at least 1, not 0"),
    ],
)
def test_what_a_file_may_not_say(tmp_path, text, says):
    (tmp_path / "lsa.yaml").write_text(text)
    with pytest.raises(UsageError, match=says):
        read_config(tmp_path / "lsa.yaml")


@pytest.mark.parametrize(
    ("checkpoint", "eps"),
    [("m/x.pt", 0.1), ("m/a/x.pt", 0.2), ("m/a/b/x.pt", 0.2), ("m/a/b/y.pt", 0.3), ("a/z.pt", 0.4), ("mx.pt", 0.4)],
)
def test_settings_of_a_checkpoint_win_over_the_rest_of_the_file_and_the_last_glob_wins(tmp_path, checkpoint, eps):
    (tmp_path / "lsa.yaml").write_text(
        "checkpoints:\n  x.pt: {eps: 0.1, seed: 2}\n  'm/**/y.pt': {eps: 0.3}\n  'a/**/x.pt': {eps: 0.2}\neps: 0.4\nseed: 1\n"
    )
    file = str(tmp_path / "lsa.yaml")
    settings, origin, _ = merged(AuditSettings(), file, checkpoint)
    assert (settings.eps, settings.seed) == (eps, 2 if checkpoint.endswith("/x.pt") else 1)
    assert ("checkpoints: " in origin["eps"]) == (eps < 0.4)
    assert merged(AuditSettings(eps=0.5), file, checkpoint)[0].eps == 0.5


def test_the_command_line_suggests_an_option():
    done = subprocess.run(
        [sys.executable, "-m", "lsa_cli", "audit", "x.pt", "--fail-undr", "robust=1"], capture_output=True
    )
    assert (done.returncode, b"--fail-under" in done.stderr) == (2, True)


@pytest.mark.parametrize("line", ["html: page.html", "exit-zero: true", "gate_only: true", "github: true"])
def test_a_file_that_nobody_chose_decides_no_output_and_no_exit_code(tmp_path, monkeypatch, line):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "lsa.yaml").write_text(f"seed: 1\n{line}\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"line 2: .* found beside the checkpoint, not chosen by you"):
        configurations(None, tmp_path / "other" / "model.pt")
    assert configurations("other/lsa.yaml", tmp_path / "other" / "model.pt")


def test_python_writes_the_files_that_it_names(tmp_path):
    report = lsa_cli.audit(
        MOON, n=40, attack="fgsm", noise="none", threads=1, no_fast=True, fail_under=["robust=0.01"], fail_on="invalid",
        html=str(tmp_path / "r.html"), json=str(tmp_path / "r.json"), csv=str(tmp_path / "tables"),
    )  # fmt: skip
    assert (tmp_path / "r.json").read_text() == report.to_json()
    assert {path.name for path in tmp_path.iterdir()} == {"r.html", "r.json", "tables"}
    assert report.protocol.settings["limit"] == 40
    assert report.protocol.settings["fast"] is False
    assert {gate.metric for gate in report.gates} == {"robust", "evidence.invalid"}
    assert not {"files", "csv"} & set(report.protocol.settings) | {"files", "csv"} & set(report.protocol.settings_from)
    with pytest.raises(UsageError, match="stands for stdout on the command line only"):
        lsa_cli.audit(MOON, json="-")


def test_python_is_quick_and_decides_early():
    quick = lsa_cli.audit(MOON, quick=True, threads=1)
    assert (quick.protocol.settings["preset"], quick.data.n) == ("quick", 200)
    early = lsa_cli.audit(MOON, attack="fgsm", gate_only=True, alpha=0.05, fail_under={"clean": 0.1}, threads=1)
    assert (early.early.alpha, early.gates[0].passed) == (0.05, True)


def test_settings_of_the_file_and_of_the_command_line_add_up(tmp_path):
    (tmp_path / "lsa.yaml").write_text(
        "n: 40\nattack: fgsm\nnoise: none\nno-fast: true\nhtml: page.html\nfail-under: {clean: 0.1}\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "lsa_cli", "audit", MOON, "--config", "lsa.yaml", "--threads", "1", "--md", "r.md", "-q"],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(MOON.parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {"page.html", "r.md", "moon_mlp.audit.json"} <= {path.name for path in tmp_path.iterdir()}
    assert "PASSED: 1 of 1 limit holds" in done.stdout


def test_the_defaults_that_help_names_are_those_of_the_plan():
    said = {one.name: one.default for one in settings_of(AuditSettings)}
    plan = make_plan(MOON, AuditSettings(), {})
    found = {
        "seed": str(plan.seed), "measure": plan.measure_name, "sigma": plan.rule.sigma, "fast": str(plan.fast).lower(),
        "aggregate": "batch" if plan.whole_batch else "sample", "alpha": str(DEFAULT_ALPHA),
    }  # fmt: skip
    assert {name: said[name] for name in found} == found
    help = {one.name: one.help for one in settings_of(AuditSettings)}
    assert f"Default: {plan.rule.eta:g}," in help["eta"]
    early = with_preset(AuditSettings(gate_only=True), {})[0].limit
    assert with_preset(AuditSettings(gate_only=True, baseline="a.json"), {})[0].limit is None
    assert (
        f"Default: {DEFAULT_LIMIT}; with --quick {QUICK_LIMIT}, with --gate-only {early}, with --baseline its samples."
        in help["limit"]
    )


def test_help_imports_neither_torch_nor_pydantic():
    code = (
        "import sys, lsa_cli.cli.main; print({'torch', 'torchvision', 'pandas', 'yaml', 'pydantic'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


PLUGIN = """
from lsa_cli.report.formats import register

@register("one-line", "FILE.txt", "One line for a log.")
def one_line(report):
    return f"robust {report.verdict.robust.count}\\n"
"""


def test_a_format_of_a_plugin_has_an_option_a_key_and_an_argument(tmp_path):
    (tmp_path / "mine.py").write_text(PLUGIN)
    (tmp_path / "lsa.yaml").write_text("plugin: mine.py\nfiles: {one-line: b.txt}\n")
    environment = {**os.environ, "PYTHONPATH": str(MOON.parents[1])}
    short = ["-n", "40", "--attack", "fgsm", "--noise", "none", "--layers", "none", "--threads", "1"]

    def run(*command):
        done = subprocess.run(
            [sys.executable, *map(str, command)], cwd=tmp_path, capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("-m", "lsa_cli", "audit", MOON, *short, "-q")
    run("-m", "lsa_cli", "audit", MOON, *short, "--plugin", "mine.py", "--one-line", "a.txt", "--nproc", "2")
    code = f"import lsa_cli; lsa_cli.audit({str(MOON)!r}, n=40, attack='fgsm', noise='none', layers='none', threads=1, "
    run("-c", code + "plugin='mine.py', one_line='c.txt')")
    run("-m", "lsa_cli", "report", "moon_mlp.audit.json", "--plugin=mine.py", "--one-line=d.txt")
    assert "One line for a log." in run("-m", "lsa_cli", "audit", "--plugin", "mine.py", "--help")
    assert "One line for a log." in run("-m", "lsa_cli", "list", "formats", "--plugin", "mine.py")
    texts = {name: (tmp_path / f"{name}.txt").read_text() for name in "abcd"}
    assert len(set(texts.values())) == 1
    assert texts["a"].startswith("robust ")


def test_harden_from_python_takes_training_s_settings_and_writes_its_page(tmp_path):
    short = {"method": "at", "base": "fgsm", "epochs": 1, "n": 20, "threads": 1, "ema": True}
    page = tmp_path / "page.html"
    hardened = lsa_cli.harden(MOON, tmp_path / "h.pt", batch_size=256, html=str(page), **short)
    assert (hardened.before.data.n, hardened.out.exists(), "<html" in page.read_text()) == (20, True, True)
    for wrong, says in (
        ({"json": "r.json"}, "^json: belongs to an audit"),
        ({"epocs": 2}, "unknown option 'epocs'"),
        ({"swa": True}, "^ema and swa set the same thing"),
        ({"html": str(MOON)}, "is what is read here"),
    ):
        with pytest.raises(UsageError, match=says):
            lsa_cli.harden(MOON, tmp_path / "h.pt", **{**short, **wrong})


def test_the_defaults_that_the_help_of_hardening_names_are_those_of_the_recipes():
    help = {one.name: option.help for one in settings_of(HardenSettings) for option in one.options}
    recipes = {"": (3,), "grey images": (1, 9, 9), "colour images": (3, 9, 9), "rift": (3,)}
    for kind, shape in recipes.items():
        usual = RobustCriticalFineTuning.recipe if kind == "rift" else {}
        recipe, steps = recipe_for(HardenSettings(), usual, shape, nn.Linear(3, 2), torch.device("cpu"))
        for name in ("epochs", "lr", "optimizer", "weight_decay", "schedule", "warmup", "batch_size", "augment"):
            assert default_for(kind, help[name]) == plain(getattr(recipe, name)), name
        assert default_for(kind, help["steps"]) == f"{steps}"
        assert (recipe.clip, recipe.label_smoothing, recipe.awp) == (0, 0, 0)


def plain(value):
    return value if isinstance(value, str) else f"{value:g}"


def default_for(kind, help):
    """The value that "Default: 5 for grey images, otherwise 10." names for one kind of input."""
    parts = help.partition("Default: ")[2].removesuffix(".").split(", ")
    other = next(part for part in parts if part.startswith("otherwise") or len(part.split()) == 1)
    chosen = next((part for part in parts if kind and kind in part), other)
    return next(word for word in chosen.split() if word not in ("otherwise", "and", "with", "rift"))
