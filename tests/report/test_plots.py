"""`lsa plot`: what is drawn is what the reports say, in files that others open."""

import io
import re
from xml.etree import ElementTree

import pytest
from PIL import Image

from lsa_cli.report import plots
from lsa_cli.report.html import render
from tests.report.example import example
from tests.report.test_formats import HOSTILE
from tests.report.test_html import drawings

matplotlib = pytest.importorskip("matplotlib")


def figures(*reports):
    return dict(plots._figures(plots._labelled(reports)))


def second(**changes):
    report = example(**changes)
    report.subject.checkpoint = "models/hardened.pt"
    return report


@pytest.mark.parametrize("form", plots.FORMATS)
def test_files_open_and_come_out_the_same_again(form):
    report = example(outcomes=example().outcomes[:2])
    drawn = dict(plots.draw([report], form))
    assert sorted(drawn) == sorted(f"{name}.{form}" for name in figures(report))
    assert len(drawn) == 5
    for content in drawn.values():
        if form == "svg":
            assert ElementTree.fromstring(content).tag.endswith("svg")
        elif form == "png":
            with Image.open(io.BytesIO(content)) as picture:
                assert picture.size[0] > 1500  # 6.3 inches at 300 dots
        else:
            assert content.startswith(b"%PDF")
    assert next(plots.draw([report], form)) == next(iter(drawn.items()))


def test_lines_and_bars_hold_the_reports_numbers():
    drawn = figures(example(), second())
    (axes, *_) = drawn["layers-attacks-example"].axes
    assert {line.get_label(): line.get_ydata().tolist() for line in axes.lines} == {
        "fgsm": [0.5, 0.7],
        "pgd": [0.5, 0.8],
    }
    (axes,) = drawn["layers-models-pgd"].axes
    assert [line.get_label() for line in axes.lines] == ["example", "hardened"]
    (axes,) = drawn["curve-linf"].axes
    assert axes.lines[0].get_ydata().tolist() == pytest.approx([90, 30])
    assert len({(line.get_linestyle(), line.get_marker(), line.get_color()) for line in axes.lines}) == 2
    (axes,) = drawn["models"].axes
    assert [text.get_text() for text in axes.get_xticklabels()] == [
        "clean", "fgsm", "pgd", "gaussian", "worst case", "worst class",
    ]  # fmt: skip
    assert [bar.get_height() for bar in axes.containers[1].patches] == pytest.approx([90, 50, 30, 90, 30, 20])
    (axes, _) = drawn["layer-by-class-example"].axes
    assert axes.images[0].get_array().tolist() == [[0.5, 0.5], [0.8, 0.8]]


def test_gaps_and_hostile_names_are_drawn_as_they_are():
    hurt = (*HOSTILE, "_hidden", "$\\frac{$", "$x$")
    drawn = figures(example(names=hurt, blind_layer=True, empty_class=True))
    assert [text.get_text() for text in drawn["classes-example"].axes[0].get_xticklabels()][-1] == HOSTILE[0]
    assert all(content for _, content in plots.draw([example(names=hurt, blind_layer=True, empty_class=True)], "svg"))
    assert figures(example(budget=False, outcomes=[], curves=[], status="interrupted")) == {}
    assert set(figures(example(budget=False, curves=[]))) == {"layers-noises-example"}


def test_the_same_name_or_another_threat_is_told_apart():
    assert [label for label, _ in plots._labelled([example(), example()])] == ["example (1)", "example (2)"]
    other = second()
    other.protocol.threat.text = "8/255"
    assert [label for label, _ in plots._labelled([example(), other])] == ["example, linf 0.3", "hardened, linf 8/255"]


def test_many_layers_are_numbered_and_long_names_aslant():
    report = example()
    for outcome in report.outcomes:
        outcome.layers.rows = [outcome.layers.rows[i % 2].model_copy(update={"name": f"block.{i}"}) for i in range(30)]
        outcome.layers.by_class = None
    (axes,) = figures(report)["layers-attacks-example"].axes
    assert axes.get_xlabel() == "layer index"
    (axes,) = figures(example(names=("a-class-with-a-long-name", *"abcdefgh")))["classes-example"].axes
    assert {text.get_rotation() for text in axes.get_xticklabels()} == {45}


def test_the_page_draws_the_same_lines_in_the_same_colours():
    (axes,) = figures(example())["layers-attacks-example"].axes
    page = render(example())
    (drawing,) = (one for one in drawings(page) if 'aria-label="Mean comparison measure by layer, under attacks' in one)
    for line in axes.lines:
        name, value = line.get_label(), line.get_ydata()[-1]
        (colour,) = re.findall(rf'class="dot s(\d)"><title>{name}, relu2: {value:.3f}</title>', drawing)
        assert f"--c{colour}: {line.get_color()};" in page
    bars = figures(example())["classes-example"].axes[0].containers
    colours = [matplotlib.colors.to_hex(drawn[0].get_facecolor()) for drawn in bars if hasattr(drawn, "patches")]
    assert [f"--c{place}: {colour};" in page for place, colour in zip((1, 0), colours, strict=True)] == [True, True]
