import pytest

from lsa_cli.config import find_config, read_config
from lsa_cli.errors import UsageError
from lsa_cli.report.limits import Limit
from lsa_cli.settings import merge, settings_from


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
        ("eps: 0.1\nattak: pgd\n", "line 2: unknown key 'attak': did you mean 'attack'"),
        ("eps: 0.1\nseed: 1\neps: 0.2\n", "line 3: eps stands twice"),
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
