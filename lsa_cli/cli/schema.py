"""`lsa schema`: print a JSON Schema."""

import json as json_module
from typing import Annotated

import typer

from lsa_cli.cli.completion import words
from lsa_cli.cli.console import emit
from lsa_cli.errors import UsageError
from lsa_cli.registry import unknown


def schema(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
            help="What the schema describes: report, comparison, fleet or config.",
            show_default=False,
            autocompletion=words("report", "comparison", "fleet", "config"),
        ),
    ],
) -> None:
    """Print the JSON Schema of reports, of comparisons, of fleets or of lsa.yaml."""
    emit(schema_of(kind))


def schema_of(kind: str) -> str:
    from lsa_cli.report.compare import Comparison
    from lsa_cli.report.fleet import Fleet
    from lsa_cli.report.schema import AuditReport
    from lsa_cli.settings.schema import config_schema

    schemas = {
        "report": AuditReport.model_json_schema, "comparison": Comparison.model_json_schema,
        "fleet": Fleet.model_json_schema, "config": config_schema,
    }  # fmt: skip
    if kind not in schemas:
        raise UsageError(unknown("schema", kind, schemas))
    return json_module.dumps(schemas[kind](), indent=1) + "\n"
