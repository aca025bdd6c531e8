"""The meanings of terms on the pages: those of the glossary, for every attack, and none for names from outside."""

import re
from pathlib import Path

from lsa_cli.attacks import ATTACKS, NOISES
from lsa_cli.report.terms import TERMS, meaning, with_meanings

GLOSSARY = Path(__file__).parents[2] / "docs" / "glossary.md"


def test_the_glossary_says_the_same():
    rows = dict(re.findall(r"^\| ([^|]+?) \| ([^|]+?) \|", GLOSSARY.read_text(), re.M))
    both = set(rows) & set(TERMS)
    assert {"eps", "gain", "margin", "NSD", "R&G", "amplification"} <= both
    assert {name: rows[name] for name in both} == {name: TERMS[name] for name in both}


def test_every_attack_and_noise_that_runs_by_itself_has_a_meaning():
    cascades = {"autoattack", "t-pgd-grid", "ranked-cascade"}  # a report names their members
    ours = (  # other tests load plugins in this process
        name
        for registry in (ATTACKS, NOISES)
        for name in registry.names()
        if registry.get(name).__module__.startswith("lsa_cli.")
    )
    names = {*ours} - cascades
    assert len(names) >= 15
    assert {name for name in names if meaning(name) is None} == set()


def test_terms_are_marked_in_text_and_nowhere_else():
    marked = with_meanings(
        '<p title="eps">eps &amp; R&amp;G, epsilon</p><td class="break">margin <b>gain</b></td><p>PGD</p>'
    )
    assert re.findall(r"<abbr[^>]*>(.*?)</abbr>", marked) == ["eps", "R&amp;G", "PGD"]
    assert '<p title="eps">' in marked
