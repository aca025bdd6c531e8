"""What an audit measures on a few samples at its end: other normalisations, evidence, metrics, example images."""

from contextlib import ExitStack

import numpy as np
import torch
from torch import nn

from lsa_cli.attacks.base import undisturbed
from lsa_cli.auditing import examples, metrics
from lsa_cli.auditing.attacking import perturb
from lsa_cli.auditing.class_diagnosis import ClassDiagnosis, rate
from lsa_cli.auditing.draws import draw
from lsa_cli.auditing.evidence import usage
from lsa_cli.auditing.evidence.another_process import Source, another_process
from lsa_cli.auditing.evidence.compare import Measured, compare
from lsa_cli.auditing.evidence.decision import Checked
from lsa_cli.auditing.evidence.examine import examine as examine_probe
from lsa_cli.auditing.evidence.examine import probe_size
from lsa_cli.auditing.evidence.planted import attack_to_test
from lsa_cli.auditing.evidence.preflight import trained_on_the_same, useless_logits
from lsa_cli.auditing.evidence.probe import Probe
from lsa_cli.auditing.evidence.repeatability import SAMPLES as ASKED_AGAIN
from lsa_cli.auditing.evidence.repeatability import Beginning
from lsa_cli.auditing.evidence.stronger import Survivors
from lsa_cli.auditing.execution import Execution, sample_order
from lsa_cli.auditing.layer_analysis import most_vulnerable
from lsa_cli.auditing.named_attacks import NamedAttack
from lsa_cli.auditing.plan import AuditPlan
from lsa_cli.auditing.provenance import claimed_accuracy, subject_of
from lsa_cli.auditing.radius import check_radius
from lsa_cli.auditing.rebuilt import ARCHITECTURE as RECONSTRUCTED
from lsa_cli.auditing.results import BlockResult
from lsa_cli.auditing.suggesting import asked_of, write_command
from lsa_cli.models.classifier import normalization_of, predicted_class, with_normalization
from lsa_cli.models.normalizations import is_same, usual_normalizations
from lsa_cli.models.rounding import rounded, roundings_of
from lsa_cli.report.row import Rate
from lsa_cli.report.schema import Example, Metric

_ROUNDED, _AT_ONCE = 1000, 100  # samples that are asked with rounded activations, and in one pass

# ---- is the network used as it was trained? ---------------------------------------------------------------


def clean_checks(plan: AuditPlan, total: BlockResult, normalization: Checked | None) -> list[Checked]:
    """Checks of how the network is used, from clean predictions. normalization: the check of others, if it ran."""
    order = usage.class_order(
        total.label, total.clean, plan.network.class_names, plan.network.data.labels[total.index].astype(np.int64)
    )
    return [
        check_radius(plan),
        usage.claim(rate(total.right), claimed_accuracy(plan.network.checkpoint)),
        *_reconstruction(plan, rate(total.right)),
        *_dequantised(plan, total),
        *([usage.without_second_cause(normalization, order)] if normalization is not None else []),
        order,
        usage.lost_classes(total.label, total.clean, plan.network.class_names),
        usage.near_chance(rate(total.right), len(plan.network.class_names)),
    ]


def _reconstruction(plan: AuditPlan, clean: Rate) -> list[Checked]:
    """The check of a network that was put together from its weights. With BatchNorm, that is done only if its statistics fit."""
    network = plan.network
    if network.arch != RECONSTRUCTED:
        return []
    remembers = any(
        isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
        for module in network.classifier.modules()
    )
    assert network.checkpoint is not None
    writes = write_command(network.checkpoint.path, asked_of(network.settings, network.origin, network.description))
    return [usage.reconstruction(clean, remembers or claimed_accuracy(network.checkpoint) is not None, writes)]


def _dequantised(plan: AuditPlan, total: BlockResult) -> list[Checked]:
    """The check of a network whose weights were quantised, with the one whose activations are rounded too."""
    network, checkpoint = plan.network, plan.network.checkpoint
    if checkpoint is None or not checkpoint.weights.quantised:
        return []
    roundings = roundings_of(checkpoint)
    answers = np.empty(0, dtype=np.int64)
    rows = total.index[: _ROUNDED if roundings else 0]
    with torch.no_grad(), undisturbed(network.classifier), rounded(network.classifier.body, roundings) as placed:
        for part in np.split(rows, range(_AT_ONCE, len(rows), _AT_ONCE)) if placed else []:
            found = predicted_class(network.classifier(network.inputs(part))).cpu().numpy()
            answers = np.concatenate([answers, found])
    n = len(answers)
    label, clean = total.label[:n], total.clean[:n]
    right, also = (int((one == label).sum()) for one in (clean, answers))
    return [
        usage.dequantised(
            checkpoint.weights.quantised, n, right, also, int((clean == answers).sum()), placed, len(roundings)
        )
    ]


def can_be_normalized(plan: AuditPlan) -> bool:
    """Whether inputs are images in [0, 1], for which there are usual normalisations."""
    return len(plan.network.input_shape) == 3 and plan.network.bounds == (0.0, 1.0)


def try_normalizations(run: Execution, total: BlockResult) -> Checked:
    """Whether clean accuracy is higher with another usual normalisation."""
    plan, channels = run.plan, run.plan.network.input_shape[0]
    used = normalization_of(plan.network.classifier)
    usual = usual_normalizations(channels)
    others = {name: value for name, value in usual.items() if not is_same(value, used, channels)}
    rows = usage.rows_to_try(total.right, plan.seed)

    def right_under(name: str, chosen: np.ndarray) -> np.ndarray:
        places = rows[chosen]
        order = np.argsort(places)
        model, right = with_normalization(plan.network.classifier, others[name]), np.zeros(len(places), dtype=bool)

        def ask(x: torch.Tensor, y: torch.Tensor, index: torch.Tensor) -> np.ndarray:
            run.stop_if_late()
            with torch.no_grad(), undisturbed(model), draw(plan.seed, index, 0):
                return (predicted_class(model(x)) == y).cpu().numpy()

        found = [answers for batch in run.read(total.index[places[order]]) for answers in run.by_batch(ask, *batch)]
        right[order] = np.concatenate(found) if found else right[order]
        return right

    said = next((name for name, value in usual.items() if is_same(value, used, channels)), "that of the audit")
    most_frequent = float(np.bincount(total.label[rows], minlength=1).max()) / max(1, len(rows))
    return usage.normalization(total.right[rows], list(others), right_under, said, most_frequent)


# ---- are the attacks strong enough? -----------------------------------------------------------------------


def examine(run: Execution, total: BlockResult, clean: list[Checked]) -> list[Checked]:
    """The checks on a few samples, those of what the audit measured anyway, and `clean`; without attacks only the last,
    and none where they found nothing."""
    plan = run.plan
    measured = _measured(plan, total)
    if not measured:
        return clean if any(check.finding is not None for check in clean) else []
    budget = [attack.label for attack in measured]
    rows = np.random.default_rng([plan.seed, 13]).permutation(len(total))[: probe_size(len(total))]
    rows = np.sort(rows)
    probe = _probe(run, total.index[rows], total)
    survivors = total.survivors(budget)
    broken = torch.from_numpy((total.right & ~survivors)[rows])
    copy = run.copy.model
    models = [plan.network.classifier, *([copy] if copy is not None else [])]
    with ExitStack() as within:
        within.enter_context(run.passes_are_steps("evidence", *models))
        for model in models:
            within.enter_context(run.clock.stops(model))
        last = plan.network.last_layer.module if plan.network.last_layer is not None else None
        examined = examine_probe(
            probe, broken=broken, survivors=_left(run, total, survivors), last=last, hidden=_hidden(plan, total), beginning=run.beginning,
            attack=attack_to_test([named.attack for named in plan.budget_attacks], plan.threat),
            labelled=torch.from_numpy(np.isin(np.arange(plan.network.classes), plan.network.labels)),
        )  # fmt: skip
        if plan.settings.preset == "full" and any(check.name == "history" for check in examined):
            beginning = run.beginning or Beginning.of(plan.network.classifier)
            examined.append(another_process(probe, beginning, Source.of(plan.network)))
    trained_on = trained_on_the_same(subject_of(plan).history, plan.network.data.spec, plan.network.data.split)
    raw = plan.network.classifier.output == "probabilities"
    return [
        *clean, useless_logits(total.logits, raw), trained_on, *examined, *compare(measured)
    ]  # fmt: skip


def remember(run: Execution) -> None:
    """Keep the network as it is before the audit, for the evidence."""
    plan = run.plan
    if plan.budget_attacks and plan.threat.eps:
        beginning = Beginning.of(plan.network.classifier, plan.network.unasked)
        first = np.sort(sample_order(plan)[:ASKED_AGAIN])  # which the first block reads again
        run.beginning = beginning.asked(_probe(run, first))


def _probe(run: Execution, index: np.ndarray, total: BlockResult | None = None) -> Probe:
    """total: what is proven of these samples."""
    plan = run.plan
    x, y, places = run.read_all(index)
    proven = None
    if total is not None and total.proof is not None:
        proven = torch.from_numpy(total.rows(index).proven).to(x.device)
    return Probe(plan.network.classifier, x, y, places, plan.threat, plan.seed, run.batch.size, proven, run.copy.model)


def _left(run: Execution, total: BlockResult, survivors: np.ndarray) -> Survivors:
    """The samples that are still robust, in random order."""
    left = np.flatnonzero(survivors)
    order = np.random.default_rng([run.plan.seed, 23]).permutation(left)

    def take(start: int, stop: int) -> Probe:
        return _probe(run, total.index[np.sort(order[start:stop])], total)

    return Survivors(len(left), len(total), take)


def _hidden(plan: AuditPlan, total: BlockResult) -> list[str]:
    """The most vulnerable layers of the scan under the attack that leaves the fewest samples robust, worst first."""
    scanned = _scanned(plan, total)
    seen = total.attacks[_strongest(scanned)[0].label].seen if scanned else None
    names = [layer.name for layer in plan.layers]
    return most_vulnerable(names, seen, plan.rule, plan.whole_batch) if names and seen is not None else []


def _measured(plan: AuditPlan, total: BlockResult) -> list[Measured]:
    """The results of every budget attack that ran on at least one sample."""
    several = []
    for named in plan.budget_attacks:
        rows = total.attacks.get(named.label)
        if rows is None or not rows.ran.any():
            continue
        threat = plan.threat_of(named)
        # On a stochastic network a sample can break in one pass and not in the next, so the attack has lost nothing.
        found_at = rows.found_at if rows.found_at.any() and not plan.is_stochastic else None
        several.append(
            Measured(
                label=named.label, role=named.attack.role, budget=f"{threat.norm} {threat.eps:g}",
                diagnosis=total.diagnosis(named.label), ran=rows.ran, found_at=found_at,
            )
        )  # fmt: skip
    return several


# ---- metrics and examples ---------------------------------------------------------------------------------


def measure_metrics(run: Execution, total: BlockResult) -> list[Metric]:
    """The metrics asked for, on a few samples and the attack that leaves the fewest samples robust."""
    plan = run.plan
    named, _ = _strongest(_scanned(plan, total))
    rows = np.sort(np.random.default_rng([plan.seed, 17]).permutation(len(total))[: metrics.SAMPLES])
    x, y, index = run.read_all(total.index[rows])
    x_adv = torch.cat(list(run.by_batch(lambda x, y, index: perturb(run, named, x, y, index, "worst")[0], x, y, index)))
    given = metrics.Given(plan.network.classifier, plan.network.bounds, plan.seed, run.batch.size)
    rows_found: list[Metric] = []
    for name in plan.metrics:
        with draw(plan.seed, index, 0):
            found = metrics.METRICS.get(name)(given, x, x_adv, y)
        rows_found += [row.model_copy(update={"attack": row.attack or named.label}) for row in found]
    return rows_found


def show_examples(run: Execution, total: BlockResult) -> list[Example]:
    """Images of a few samples that the strongest attack broke. It runs on them again and finds the same, because random
    numbers depend on the sample."""
    plan, scanned = run.plan, _scanned(run.plan, total)
    if not scanned or plan.network.bounds != (0.0, 1.0):
        return []
    named, diagnosis = _strongest(scanned)
    rows = np.sort(examples.surest_mistakes(diagnosis.broken, total.attacks[named.label].margin, total.label))
    if not len(rows):
        return []
    x, y, index = run.read_all(total.index[rows])
    if not examples.are_pictures(x):
        return []
    found = list(run.by_batch(lambda x, y, index: perturb(run, named, x, y, index, "worst"), x, y, index))
    x_adv = torch.cat([moved for moved, _ in found])
    predicted, margins, distance = (
        np.concatenate([getattr(rows, name) for _, rows in found]) for name in ("predicted", "margin", "distance")
    )
    return [
        examples.example(
            x[i].cpu().numpy(), x_adv[i].cpu().numpy(), index=int(index[i]), attack=named.label,
            label=plan.network.class_names[int(y[i])], predicted=plan.network.class_names[predicted[i]], margin=float(margins[i]),
            distance=float(distance[i]),
        )
        for i in range(len(x))
        if predicted[i] >= 0 and predicted[i] != int(y[i])
    ]  # fmt: skip


def _scanned(plan: AuditPlan, total: BlockResult) -> list[tuple[NamedAttack, ClassDiagnosis]]:
    """The budget attacks that ran on all samples."""
    return [(named, total.diagnosis(named.label)) for named in plan.attacks if named.label in total.attacks]


def _strongest(scanned: list[tuple[NamedAttack, ClassDiagnosis]]) -> tuple[NamedAttack, ClassDiagnosis]:
    """The attack that leaves the fewest samples robust; the first of equals."""
    return min(scanned, key=lambda pair: pair[1].robust.sum())
