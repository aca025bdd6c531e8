import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lsa_cli import audit
from lsa_cli.__main__ import app
from lsa_cli.config import find_config, read_config
from lsa_cli.errors import UsageError
from lsa_cli.report.formats import FORMATS
from lsa_cli.report.limits import METRICS, Limit, limit_of
from lsa_cli.settings import merge, settings_from

MOON = Path(__file__).parents[1] / "sample_models" / "moon_mlp.pt"
PLUGIN = """
from lsa_cli.report.formats import register

@register("{name}", "FILE", "A format of a test.")
def render(report):
    return "written"
"""


def written(folder, text):
    path = folder / "lsa.yaml"
    path.write_text(text)
    return path


def test_values_as_people_write_them(tmp_path):
    settings = read_config(
        written(
            tmp_path,
            "version: 1\neps: 8/255\nstep-size: 1e-3\nattack: pgd:steps=5\nlimit: all\neps_grid: [0, 1/255]\n"
            "gate:\n  robust: 0.4\n  class.min: 1/5\n",
        )
    )
    assert settings.eps == 8 / 255
    assert settings.step_size == 1e-3
    assert settings.attack == ["pgd:steps=5"]
    assert settings.limit == "all"
    assert settings.eps_grid == [0, 1 / 255]
    assert settings.gate == {"robust": Limit(min=0.4), "class.min": Limit(min=0.2)}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("eps: 0.1\nlimits: {robust: 0.4}\n", "line 2: unknown key 'limits': did you mean 'gate'?"),
        ("limits: 40\n", "line 1: unknown key 'limits': did you mean 'limit'"),
        (
            "checkpoints:\n  a.pt:\n    clean: 1/5\n",
            "line 3: .*'clean': limits stand under gate, .*`gate: {clean: 1/5}`",
        ),
        ("eps: 0.1\nattak: pgd\n", "line 2: unknown key 'attak': did you mean 'attack'"),
        ("eps: 0.1\nseed: 1\neps: 0.2\n", "line 3: eps is given twice"),
        ("seed: 0\neps: lots\nsteps: 3\ngate:\n  robust: 0.4\n", "line 2: eps: 'lots' is not a number"),
        ("gate:\n  clean: 0.5\n  robust: much\nseed: 1\n", "line 3: the limit robust: 'much' is not a number"),
        ("seed: 1\neps_grid: [0, x]\n", "line 2: eps_grid: 'x' is not a number"),
        ("seed: 0\nsteps: many\n", "line 2: steps"),
        ("steps: 0\n", "at least 1"),
        (
            "seed: 1\ngate:\n  clean: 0.1\n  rubost: 0.4\n",
            "line 4: unknown gate metric 'rubost': did you mean 'robust'",
        ),
        ("gate:\n  robust: 40\n", "such as 0.4"),
        ("a: [1\n", "not valid YAML"),
        ("- eps\n", "key: value"),
        ("eps: &x 0.1\nstep_size: *x\n", "aliases"),
        ("eps: !!python/object/apply:os.system [ls]\n", "not valid YAML"),
        ("version: 2\n", "version 2"),
        ("sigma: pixels\n", "samples or layers"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path, text, says):
    path = written(tmp_path, text)
    with pytest.raises(UsageError, match=says) as caught:
        read_config(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("metric", [kind.name for kind in METRICS])
def test_a_limit_outside_gate_is_shown_its_place(tmp_path, metric):
    with pytest.raises(UsageError, match=re.escape(f"unknown key '{metric}': limits stand under gate, ")) as caught:
        read_config(written(tmp_path, f"seed: 1\n{metric}: 0.3\n"))
    shown = str(caught.value).split("`")[1]
    assert read_config(written(tmp_path, shown)).gate == {metric: limit_of(metric, 0.3)}


UNKNOWN = [
    ("norm: l3", "unknown norm 'l3': choose from linf, l2, l1"),
    ("device: gpu", "--device 'gpu': there are auto"),
    ("normalize: foo", "--normalize 'foo': give mnist"),
    ("input-range: foo", "--input-range 'foo' must be LOW,HIGH"),
    ("attack: [fgsm, pdg]", "unknown attack 'pdg': did you mean 'pgd'"),
    ("noise: [foo]", "unknown noise 'foo'"),
    ("corruption: [fogg]", "unknown corruption 'fogg': did you mean 'fog'"),
    ("measure: l3", "unknown measure 'l3'"),
    ("metrics: [enj]", "unknown metric 'enj': did you mean 'eni'"),
    ("files: {mdd: a}", "unknown format 'mdd': did you mean 'md'"),
]


@pytest.mark.parametrize(("line", "says"), UNKNOWN)
def test_unknown_names_are_refused_with_their_line(tmp_path, monkeypatch, line, says):
    """By `lsa check`, and by an audit before anything runs."""
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path, f"seed: 1\n{line}\n")
    for command in (["check", str(path)], ["audit", str(MOON)]):
        result = CliRunner().invoke(app, command)
        assert (result.exit_code, f"line 2: {says}" in result.stderr) == (2, True), result.stderr
    with pytest.raises(UsageError, match="line 2: "):
        audit(MOON, config=path)
    assert [file.name for file in tmp_path.iterdir()] == ["lsa.yaml"]


ALONE = [
    ("attack: [pgd]\nfull-on: 5", "--full-on sets how many samples run through the cascade, and there is none"),
    ("attack: [pgd]\nquick: true", "preset: quick chooses the attacks; leave out attack"),
    ("attack: ['pgd:stepz=3']", "unknown option 'stepz': did you mean 'steps'"),
    ("attack: [fgsm]\nrestarts: 3", "--restarts: none of the attacks (fgsm) takes it"),
    ("seed: 1\ncheckpoints: {'*.pt': {attack: [pgd], full-on: 5}}", "--full-on sets how many"),
]


@pytest.mark.parametrize(("text", "says"), ALONE)
def test_attacks_that_no_audit_runs_are_refused_by_check_as_by_an_audit(tmp_path, monkeypatch, text, says):
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path, f"{text}\n")
    for command in (["check", str(path)], ["audit", str(MOON)]):
        result = CliRunner().invoke(app, command)
        assert (result.exit_code, says in result.stderr) == (2, True), result.stderr


@pytest.mark.parametrize(
    "text", ["full-on: 5", "norm: l2\nattack: [fmn]", "attack: [deepfool]\nsteps: 9", "gate: {proven: 0.1}"]
)
def test_attacks_that_some_audit_runs_are_passed_by_check(tmp_path, text):
    assert CliRunner().invoke(app, ["check", str(written(tmp_path, f"{text}\n"))]).exit_code == 0


def test_python_refuses_an_unknown_format_before_anything_runs():
    with pytest.raises(UsageError, match="unknown format 'mdd': did you mean 'md'"):
        audit(MOON, files={"mdd": "a"}, progress=lambda *done: pytest.fail("the audit runs"))


def test_names_of_plugins_are_not_unknown(tmp_path, monkeypatch):
    """The plugins of the file are not run by `lsa check`; a plugin of the command line is loaded before the file is read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(FORMATS, "_entries", dict(FORMATS._entries))
    (tmp_path / "one.py").write_text(PLUGIN.format(name="of-test-config-1"))
    (tmp_path / "two.py").write_text(PLUGIN.format(name="of-test-config-2"))
    written(tmp_path, "plugin: one.py\nfiles: {of-test-config-1: a.txt}\n")
    assert CliRunner().invoke(app, ["check", "lsa.yaml"]).exit_code == 0
    quick = ["audit", str(MOON), "-n", "8", "--attack", "fgsm", "--noise", "none", "--threads", "1"]
    assert CliRunner().invoke(app, quick).exit_code == 0
    written(tmp_path, "files: {of-test-config-2: b.txt}\n")
    assert CliRunner().invoke(app, [*quick, "--plugin", "two.py"]).exit_code == 0
    assert [(tmp_path / name).read_text() for name in ("a.txt", "b.txt")] == ["written", "written"]


@pytest.mark.parametrize("line", ["norm: Linf", "norm: inf", "device: cuda:77", "normalize: 0.5/0.25", "attack: none"])
def test_other_spellings_and_other_machines_are_known(tmp_path, line):
    assert CliRunner().invoke(app, ["check", str(written(tmp_path, f"{line}\n"))]).exit_code == 0


def test_an_empty_file_sets_nothing(tmp_path):
    assert read_config(written(tmp_path, "# nothing yet\n")).given() == {}


@pytest.mark.parametrize("line", ["arch: mine.py:build", "plugin: evil.py", "data: pkg.mod:factory"])
def test_a_file_found_beside_a_checkpoint_names_no_code(tmp_path, line):
    path = written(tmp_path, line + "\n")
    read_config(path, chosen=True)
    with pytest.raises(UsageError, match="names Python code"):
        read_config(path, chosen=False)


def test_the_nearest_file_wins(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    monkeypatch.chdir(here)
    checkpoint = there / "model.pt"
    assert find_config(None, checkpoint) == (None, True)
    own = written(here, "eps: 0.1\n")
    assert find_config(None, checkpoint) == (own, True)
    beside = written(there, "eps: 0.2\n")
    assert find_config(None, checkpoint) == (beside, False)
    assert find_config(str(own), checkpoint) == (own, True)
    with pytest.raises(UsageError, match="there is no file"):
        find_config("nowhere.yaml", checkpoint)


def test_options_win_and_the_origin_is_kept():
    merged, origin = merge(
        ("option", settings_from({"eps": "0.1"})), ("lsa.yaml", settings_from({"eps": 0.2, "steps": 7}))
    )
    assert (merged.eps, merged.steps) == (0.1, 7)
    assert origin == {"eps": "option", "steps": "lsa.yaml"}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"steps": 0}, "--steps"),
        ({"limit": "0"}, "--limit"),
        ({"limit": "some"}, "--limit"),
        ({"no_such": 1}, "unknown option 'no_such'"),
    ],
)
def test_bad_options_are_named(values, says):
    with pytest.raises(UsageError, match=says):
        settings_from(values)
