"""A setting either changes what an audit reports, or is refused: over all settings, in audits of several kinds."""

import functools
from pathlib import Path

import pytest

from lsa_cli import audit
from lsa_cli.auditing.early import decide_early
from lsa_cli.auditing.plan import make_plan
from lsa_cli.errors import LsaError, UsageError
from lsa_cli.settings import AuditSettings, merge, settings_from
from lsa_cli.settings.declare import settings_of

MOON = Path(__file__).parents[2] / "sample_models" / "moon_mlp.pt"
# Each value is another one than what stands without it.
OTHER = {
    "arch": "lsa:mnist-cnn", "arch_args": {"width": 3}, "weights": "ema", "normalize": "mnist", "input_range": "0,255",
    "input_size": "64", "returns": "probabilities", "output_index": "3", "data": "npz:missing.npz", "split": "other",
    "limit": 30, "attack": ["pgd:steps=3"], "noise": ["uniform"], "corruption": ["fog"], "preset": "quick", "full_on": 3,
    "norm": "l2", "eps": 0.05, "steps": 3, "step_size": 0.1, "restarts": 2, "noise_off": True, "metrics": ["intensity"],
    "eps_grid": "0.1", "layers": ["learnable"], "measure": "cosine-distance", "aggregate": "batch", "eta": 0.1,
    "sigma": "layers", "top_k": 2, "device": "cuda:77", "seed": 5, "gate": {"clean": 0.1},
    "prove": True,
}  # fmt: skip
# How fast and how long, which changes no result; and leave to do something, where there may be nothing to do.
RESOURCES = {"batch_size", "threads", "budget"}
LEAVE = {"trust_code", "plugin", "fast", "match_classes", "patient"}
KINDS = {
    "layers": {"attack": ["fgsm"], "noise": ["none"]},
    "no layers": {"attack": ["fgsm"], "noise": ["none"], "layers": ["none"]},
    "a number of layers": {"attack": ["fgsm"], "noise": ["none"], "top_k": 1},
    "noise alone": {"attack": ["none"], "noise": ["gaussian"]},
    "a cascade alone": {"attack": ["autoattack:steps=5,queries=20"], "noise": ["none"]},
    "a cascade and layers": {"attack": ["fgsm", "autoattack:steps=5,queries=20"], "noise": ["none"]},
}


def content(settings):
    report = audit(MOON, **{"limit": 40, "threads": 1, **settings}).model_dump(mode="json")
    return without_times({name: part for name, part in report.items() if name not in ("created", "settings", "origin")})


def without_times(part):
    if isinstance(part, dict):
        return {
            name: without_times(value)
            for name, value in part.items()
            if name not in ("seconds", "settings", "settings_from")
        }
    return [without_times(value) for value in part] if isinstance(part, list) else part


@functools.cache
def plain(kind):
    return content(KINDS[kind])


def test_every_setting_is_tried():
    assert set(OTHER) | RESOURCES | LEAVE | {"harden"} == {
        one.name for one in settings_of(AuditSettings) if one.scope == "measured"
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OTHER)
def test_a_setting_changes_the_report_or_is_refused(kind, name):
    try:
        changed = content({**KINDS[kind], name: OTHER[name]})
    except LsaError:
        return
    assert changed != plain(kind)


@pytest.mark.parametrize("name", ["layers", "measure", "top_k", "noise", "metrics", "eps_grid"])
def test_what_an_early_decision_leaves_out_is_refused(name):
    given = settings_from({"attack": ["fgsm"], "gate": {"clean": 0.1}, "threads": 1, name: OTHER[name]})
    with pytest.raises(UsageError, match=rf"--{name.replace('_', '-')} changes nothing here: --gate-only"):
        decide_early(make_plan(MOON, *merge(("option", given))))


def test_of_a_file_that_serves_several_commands_it_is_told(tmp_path):
    (tmp_path / "lsa.yaml").write_text("top_k: 3\nlayers: none\n")
    report = audit(MOON, limit=40, attack="fgsm", noise="none", threads=1, config=tmp_path / "lsa.yaml")
    told = [warning.message for warning in report.warnings if warning.code == "unused-setting"]
    assert told == [f"top_k of {tmp_path / 'lsa.yaml'} is not used: no layer is scanned"]


def test_alpha_without_an_early_decision_is_refused_or_told(tmp_path):
    few = {"limit": 40, "attack": "fgsm", "noise": "none", "threads": 1}
    with pytest.raises(UsageError, match=r"^alpha changes nothing here: it belongs to gate_only; leave it out"):
        audit(MOON, alpha=0.05, **few)
    (tmp_path / "lsa.yaml").write_text("alpha: 0.05\ncsv: tables\n")
    report = audit(MOON, config=tmp_path / "lsa.yaml", **{**few, "csv": str(tmp_path / "tables")})
    told = [warning.message for warning in report.warnings if warning.code == "unused-setting"]
    assert told == [f"alpha of {tmp_path / 'lsa.yaml'} is not used: it belongs to --gate-only"]
    assert set(report.protocol.settings_from) == set(report.protocol.settings)
