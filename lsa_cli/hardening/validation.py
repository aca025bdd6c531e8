"""The held-out training samples: their choice, and the accuracy of the network on them."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch

from lsa_cli import distributed
from lsa_cli.attacks.base import Attack, undisturbed
from lsa_cli.attacks.losses import margin
from lsa_cli.auditing.class_diagnosis import ClassDiagnosis
from lsa_cli.auditing.copies import TRIED
from lsa_cli.data import check_inputs, prefetch, stratified_subset
from lsa_cli.errors import UsageError
from lsa_cli.hardening.job import Job
from lsa_cli.hardening.methods import Batch
from lsa_cli.models.classifier import Classifier, predicted_class
from lsa_cli.models.precision import Copy, make_copy
from lsa_cli.wording import plural


def split_validation(labels: np.ndarray, share: float, most: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(train, validation) indices. `share` of the samples, at most `most`, stratified by class, are held out.

    Raises UsageError when a part would be empty.
    """
    count = min(most, round(share * len(labels)))
    if not 0 < count < len(labels):
        raise UsageError(
            f"--val-fraction {share:g} of {plural(len(labels), 'sample')} leaves {len(labels) - count} to train on and {count} "
            f"to choose the best epoch, and both need at least one; give a {'larger' if count < 1 else 'smaller'} --val-fraction"
        )
    validation = stratified_subset(labels, count, seed)
    return np.setdiff1d(np.arange(len(labels)), validation), validation


def validation_of(job: Job, size: int = 250) -> Iterator[Batch]:
    """Batches of the held-out samples. Every rank gets all of them."""
    for rows, read in prefetch(job.data, job.validation, size):
        x = check_inputs(read, rows, job.threat.bounds, job.data.spec).to(job.device)
        y, index = torch.from_numpy(job.labels[rows]).to(job.device), torch.from_numpy(rows).to(job.device)
        yield Batch(x, y, index, job.seed, 1.0, 1.0)


def attacked(model: Classifier, held_out: Iterable[Batch], attack: Attack) -> tuple[ClassDiagnosis, np.ndarray]:
    """The class diagnosis and the margins (N,), largest wrong logit minus the true one, under `attack`."""
    parts = []
    for batch in held_out:
        x_adv = attack(model, batch.x, batch.y, index=batch.index, seed=batch.seed)
        with undisturbed(model), torch.no_grad():
            clean, logits = predicted_class(model(batch.x)), model(x_adv)
        parts.append((batch.y, clean, predicted_class(logits), margin(logits, batch.y)))
    y, clean, adversarial, margins = (torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
    return ClassDiagnosis(y, clean, adversarial, np.ones(len(y), dtype=bool)), margins


def diagnose(job: Job, attack: Attack) -> tuple[float, ClassDiagnosis]:
    """Clean accuracy, and the class diagnosis under `attack`, on the held-out samples, in float32 and evaluation mode.

    The attack starts on an optimized copy of the network, as in an audit.
    """
    model = job.model
    copy = Copy(None, "")
    found: list[dict[str, np.ndarray]] = []
    for batch in validation_of(replace(job, validation=distributed.share(job.validation))):
        if not found and attack.begins_on_copy:
            copy = make_copy(model, batch.x[:TRIED], batch.y[:TRIED])
        x_adv = attack(model, batch.x, batch.y, index=batch.index, seed=job.seed, goal="break", copy=copy.model)
        with torch.no_grad(), undisturbed(model):
            clean, adversarial = predicted_class(model(batch.x)), predicted_class(model(x_adv))
        columns = {"row": batch.index, "clean": clean, "adversarial": adversarial}
        found.append({name: column.cpu().numpy() for name, column in columns.items()})
    gathered = [part for parts in distributed.gather_objects(found) for part in parts]
    joined = {name: np.concatenate([part[name] for part in gathered]) for name in ("row", "clean", "adversarial")}
    order = np.argsort(joined["row"])
    y_all = job.labels[joined["row"][order]]
    diagnosis = ClassDiagnosis(
        y_all, joined["clean"][order], joined["adversarial"][order], np.ones(len(order), dtype=bool)
    )
    return float(diagnosis.right.mean()), diagnosis
