import dataclasses

import numpy as np
import pytest
import torch

from benchmarks.paper_print import gains
from benchmarks.paper_studies import STUDIES, Trial, trial_of
from benchmarks.paper_tables import activations, method_of, robust_curve
from benchmarks.published import GRIDS, OBJECTIVES, PUBLISHED, parse_row, robustness_and_generalisation
from lsa_cli.data import LabelledData
from lsa_cli.hardening.objectives import OBJECTIVES as TRAINABLE
from lsa_cli.models.classifier import Classifier

CPU = torch.device("cpu")
MOON = STUDIES["moon"][0]
ALL = [study for studies in STUDIES.values() for study in studies]


@pytest.mark.parametrize("key", PUBLISHED, ids=" ".join)
def test_the_published_score_is_the_sum_of_the_published_columns(key):
    *columns, score = PUBLISHED[key]
    assert len(columns) == len(GRIDS[key[0]])
    assert robustness_and_generalisation(columns) == pytest.approx(score, abs=0.005)


@pytest.mark.parametrize("study", ALL, ids=lambda study: study.model)
def test_every_published_row_is_trained_and_every_row_has_its_plain_one(study):
    assert {row for model, row in PUBLISHED if model == study.model} <= set(study.rows)
    assert {parse_row(name).plain for name in study.rows} <= set(study.rows)


@pytest.mark.parametrize("name", MOON.rows)
def test_a_row_is_the_method_that_its_name_says(name):
    layers = ("elu1", "elu2", "elu3")
    method = method_of(MOON, trial_of(MOON, name, 0), layers, 2, 1280, (2,))
    _, _, rest = name.partition("AT-")
    base, _, layer = rest.partition("-LR-L")
    assert type(method.objective) is TRAINABLE.get(OBJECTIVES[base] if base else "fgsm")
    assert (method.task.threat.eps == 0) is (name == "Normal")
    assert (method.regularizer is not None) is ("-LR-" in name)
    assert method.task.layers == ((layers[int(layer)],) if layer else ())
    assert method.task.threat.bounds is None  # points of the plane have no range


@pytest.mark.parametrize("name", ["AT-XGD", "PGD", "AT-PGD-LR", "AT-PGD-LR-Lx", "Normal-LR-L1"])
def test_what_is_no_row_is_refused(name):
    with pytest.raises(ValueError, match="is no row"):
        parse_row(name)


@pytest.mark.parametrize(("study", "count"), list(zip(ALL, (3, 4, 16, 25), strict=True)), ids=lambda value: getattr(value, "model", ""))  # fmt: skip
def test_models_have_the_activations_that_rows_count(study, count):
    shape = {"A": (2,), "B": (1, 28, 28)}.get(study.model, (3, 32, 32))
    images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    data = LabelledData("two", np.array([0, 1]), lambda rows: images[torch.from_numpy(rows)])
    layers = activations(Classifier(study.network(), study.normalization), data, CPU)
    assert len(layers) == count
    assert max(parse_row(name).layer or 0 for name in study.rows) < count


def test_curves_of_a_line_are_its_margins():
    """On z = w.x + b every attack is optimal: robust at eps is what lies further than eps * ||w||_1 on its side."""
    body = torch.nn.Linear(2, 1)
    weight, bias = torch.tensor([[2.0, -1.0]]), torch.tensor([0.1])
    body.load_state_dict({"weight": weight, "bias": bias})
    points = torch.randn(60, 2, generator=torch.Generator().manual_seed(3))
    labels = (torch.arange(60) % 3 > 0).long()
    data = LabelledData("plane", labels.numpy(), lambda rows: points[torch.from_numpy(rows)])
    margin = (points @ weight[0] + bias) * (2 * labels - 1)
    expected = [100 * float((margin > 3 * eps).float().mean()) for eps in MOON.grid]
    model, rows = Classifier(body).eval().requires_grad_(False), np.arange(60)
    for attack in ("fgsm", "pgd", "cascade"):
        assert robust_curve(MOON, model, data, rows, attack, CPU) == pytest.approx(expected, abs=1e-3)


def test_gamma_belongs_to_a_row_and_eps_to_its_base():
    study = dataclasses.replace(MOON, eps={**MOON.eps, "pgd": 0.3}, gamma={"default": 0.1, "AT-PGD-LR-L1": 0.7})
    assert trial_of(study, "AT-PGD-LR-L1", 4) == Trial("AT-PGD-LR-L1", 4, 0.3, 0.7)
    assert trial_of(study, "AT-PGD-LR-L0", 4) == Trial("AT-PGD-LR-L0", 4, 0.3, 0.1)
    assert trial_of(study, "AT-PGD", 4) == Trial("AT-PGD", 4, 0.3, None)
    assert trial_of(study, "Normal", 4) == Trial("Normal", 4, 0.0, None)


def test_a_gain_is_paired_by_seed():
    def record(seed, *curve):
        return {"settings": {"seed": seed}, "pgd": list(curve)}

    plain = [record(0, 90.0, 50.0), record(1, 80.0, 40.0), record(2, 70.0, 30.0)]
    held = [record(1, 85.0, 41.0), record(0, 90.0, 48.0), record(7, 99.0, 99.0)]
    assert gains(held, plain, "pgd") == [6.0, -2.0]
