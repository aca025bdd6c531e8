"""What all pages share: each is one self-contained file with its own style and script, and fetches nothing."""

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lsa_cli.report.charts import draw
from lsa_cli.report.figures import COLOURS
from lsa_cli.report.terms import with_meanings
from lsa_cli.report.text import between, data_name, draws_text, interval, number, percent, proof_text, settings_text
from lsa_cli.wording import compact, plural


def page(template: str, scripts: Sequence[str] = ("report.js",), **values: Any) -> str:
    """A page from `template`, which extends base.html. values: with `sections`, the titles by id; a section without one is absent.
    scripts: the files of its script.

    Every string of `values` is treated as hostile, and the page's policy runs nothing but its own script.
    """
    environment = Environment(
        loader=PackageLoader("lsa_cli.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(
        percent=percent, interval=interval, number=number, settings=settings_text, short=_short, plural=plural, sentence=_sentence, data_name=data_name
    )  # fmt: skip
    script = "\n".join(map(_template, scripts))
    text = environment.get_template(template).render(
        draw=draw,
        between=between,
        draws_text=draws_text,
        proof_text=proof_text,
        colours=COLOURS,
        style=Markup(_template("report.css")),
        script=Markup(script),
        script_hash=f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}",
        **values,
    )
    return with_meanings(text)


def _template(name: str) -> str:
    return resources.files("lsa_cli.report").joinpath("templates", name).read_text(encoding="utf-8")


def _short(value: float | None) -> str:
    return "-" if value is None else compact(value)


def _sentence(text: str) -> str:
    """The text with a capital letter."""
    return text[:1].upper() + text[1:]
