"""Estimated work against passes that are counted."""

import pytest
import torch
from torch import nn

from lsa_cli.auditing.cost import Known, cascade_work, estimate_seconds, measure_speed, share_robust, total_work
from lsa_cli.auditing.plan import make_plan
from lsa_cli.auditing.run import run_audit
from lsa_cli.settings import settings_from


class Halves(nn.Module):
    """Is the left half of an image brighter than the right one? Counts passes as the estimate does: 0.35 without a gradient."""

    def __init__(self):
        super().__init__()
        self.hidden, self.act, self.last = nn.Linear(16, 1, bias=False), nn.Tanh(), nn.Linear(1, 2, bias=False)
        self.hidden.weight.data = torch.tensor([1.0, 1.0, -1.0, -1.0]).repeat(4)[None] / 8
        self.last.weight.data = torch.tensor([[-1.0], [1.0]])
        self.spent = 0.0

    def forward(self, x):
        self.spent += len(x) * (1 if x.requires_grad else 0.35)
        return self.last(self.act(self.hidden(x.flatten(1))))


def plan_of(eps, **settings):
    """All samples have a distance of 0.2 from the decision boundary."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(300) % 2
    x = 0.5 + 0.04 * torch.rand(300, 1, 4, 4, generator=generator)
    x[..., :2] += 0.4 * y[:, None, None, None] - 0.2
    settings = {"noise": "gaussian", "threads": 1, "fast": False, **settings}
    return make_plan(Halves(), settings_from({"eps": eps, **settings}), {}, (x, y))


@pytest.mark.parametrize(("eps", "robust"), [(0.02, 1.0), (0.4, 0.0)])
def test_the_work_is_that_of_an_audit_which_is_counted(eps, robust):
    plan = plan_of(eps)
    network = plan.network.classifier.body
    assert share_robust(plan, *(part[:32] for part in samples_of(plan))) == robust
    network.spent = 0.0
    report = run_audit(plan)
    assert report.verdict.robust.value == robust
    assert network.spent == pytest.approx(total_work(plan, Known(robust=robust)), rel=0.15)


def samples_of(plan):
    return plan.network.data.read(plan.index), torch.from_numpy(plan.network.labels[plan.index])


def test_a_copy_costs_its_share_of_the_steps_that_begin_on_it():
    plan = plan_of(0.1, attack=["pgd:steps=20", "fgsm"])
    pgd, fgsm = plan.attacks
    assert Known(on_copy=0.5).passes(pgd) == pytest.approx(20.4 * (1 - 0.85 * 0.5))
    assert Known(on_copy=0.5).passes(fgsm) == fgsm.attack.passes
    assert total_work(plan, Known(on_copy=0.5)) < total_work(plan)


def test_a_cascade_costs_nothing_where_nothing_is_robust_and_most_on_the_part_that_is_asked_for():
    assert cascade_work(plan_of(0.1), Known(robust=1.0)) == 0
    whole, part = (plan_of(0.1, attack=["pgd", "autoattack"], full_on=number) for number in (None, 60))
    assert cascade_work(whole, Known(robust=0.0)) == 0
    assert cascade_work(whole, Known(robust=1.0)) == pytest.approx(5 * cascade_work(part, Known(robust=1.0)))


def test_a_network_without_a_gradient_has_an_estimate():
    class Detached(Halves):
        def forward(self, x):
            return super().forward(x.detach())

    x, y = samples_of(plan_of(0.1))
    settings = settings_from({"eps": 0.1, "attack": "square:queries=20", "noise": "none", "threads": 1})
    plan = make_plan(Detached(), settings, {}, (x, y))
    assert estimate_seconds(plan, measure_speed(plan)) > 0
