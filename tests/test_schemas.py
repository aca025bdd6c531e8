"""The JSON Schemas in docs/schema are those of the code, and describe what the code reads and writes."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from lsa_cli.cli.schema import schema_of
from lsa_cli.report.compare import compare
from lsa_cli.settings import settings_from
from lsa_cli.settings.schema import config_schema
from tests.report.example import example

FOLDER = Path(__file__).parent.parent / "docs" / "schema"


@pytest.mark.parametrize("kind", ["report", "comparison", "fleet", "config"])
def test_shipped_schema(kind, request):
    path = FOLDER / f"{kind}.schema.json"
    if request.config.getoption("--update-gold"):
        path.write_text(schema_of(kind))
    assert path.read_text() == schema_of(kind), "run pytest tests/test_schemas.py --update-gold and look at the change"
    jsonschema.Draft202012Validator.check_schema(json.loads(path.read_text()))


def test_a_comparison_fits_its_schema():
    found = compare(example(), example())
    jsonschema.validate(json.loads(found.to_json()), json.loads(schema_of("comparison")))


def fits(text):
    return not list(jsonschema.Draft202012Validator(config_schema()).iter_errors(yaml.safe_load(text)))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "version: 1\neps: 8/255\nstep-size: 1e-3\nattack: pgd:steps=5\nlimit: all\neps_grid: [0, 1/255]",
        "gate:\n  robust: 0.4\n  class.min: 1/5\n  layer.max-error: {max: 1.0, severity: warning, by: point}",
        "input_range: [0, 255]\ninput_size: 224\nbudget: 10m\neps-grid: 0,1/255",
        "gate: {mvl.relu1: 0, evidence.doubtful: 0, seconds: {max: 60, allow_not_run: true}}",
    ],
)
def test_what_lsa_reads_an_editor_accepts(text):
    settings_from({name: value for name, value in (yaml.safe_load(text) or {}).items() if name != "version"})
    assert fits(text)


@pytest.mark.parametrize(
    "text",
    ["epss: 1", "version: 2", "gate: {rubost: 0.4}", "gate: {robust: {mni: 0.4}}", "gate: {evidence: 0}", "seed: x"],
)
def test_what_lsa_refuses_an_editor_marks(text):
    assert not fits(text)
