"""Hardening: what a training method receives, and what it yields to the training loop."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from lsa_cli.attacks import Threat
from lsa_cli.auditing.class_diagnosis import ClassDiagnosis
from lsa_cli.measures import Measure
from lsa_cli.models.classifier import Classifier
from lsa_cli.registry import Registry

Step = tuple[torch.Tensor, tuple[str, ...]]  # a mean loss, and the parameter groups that it updates


@dataclass(frozen=True)
class Task:
    """What is known before training starts.

    threat, steps, step_size: of the training attack. layers: names of the flagged layers, most vulnerable first.
    gammas: weight of each of them. attack_mode: the mode the network is in while it is attacked, eval or train. input_shape: of one sample.
    """

    threat: Threat
    steps: int
    step_size: float | None
    layers: tuple[str, ...]
    gammas: tuple[float, ...]
    measure: Measure
    detach_clean: bool
    attack_mode: str
    label_smoothing: float
    awp: float
    classes: int
    samples: int
    input_shape: tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """x (N, ...), y (N,), index (N,) places in the data set; seed of this epoch; progress of the training in [0, 1];
    strength in [0, 1]: the share of eps and gamma that the warm-up has reached."""

    x: torch.Tensor
    y: torch.Tensor
    index: torch.Tensor
    seed: int
    progress: float
    strength: float


class Hardening:
    """A method: losses for the training loop, which alone owns optimizers, devices and ranks.

    A subclass is a dataclass with a field `task: Task`; its other fields are the options of --method name:key=value.
    Mutable state that training changes belongs into `state`, or a resumed run differs from an uninterrupted one.
    parts: sums over samples of the parts of the last loss, for the log; (tensor on the device, number of samples).
    """

    regularizes: ClassVar[bool] = False  # the method uses the layer-wise regularizer
    diagnosed: ClassVar[bool] = False  # `end_epoch` receives a class diagnosis
    adds_weights: ClassVar[bool] = False  # its surgery adds weights, which train even where all others are frozen
    chosen_by: ClassVar[str] = "robust accuracy"  # the name of what `score` returns

    task: Task
    parts: dict[str, torch.Tensor]
    surgeries: list[dict[str, Any]] = []

    @property
    def averages(self) -> bool:
        """Whether the method saves an average of weights of its own, see `averaged`."""
        return False

    @property
    def begins(self) -> float:
        """Share of the training after which the method is in effect. Epochs that end before are never the best epoch."""
        return 0.0

    def prepare(self, model: Classifier) -> None:
        """Surgery on model.body, once, before there are optimizers; `surgeries` then says what was done to it, for
        `lsa_cli.models.surgery` to do it again in use."""

    def groups(self, model: Classifier) -> dict[str, list[nn.Parameter]]:
        return {"weights": list(model.parameters())}

    def steps(self, model: Classifier, batch: Batch) -> Iterator[Step]:
        """Yield losses; between two yields the loop has run backward and updated the named groups."""
        raise NotImplementedError

    def begin_epoch(self, epoch: int) -> None:
        pass

    def end_epoch(self, model: Classifier, diagnosis: ClassDiagnosis) -> None:
        """Called where `diagnosed` is set. diagnosis: of the trained weights on the validation samples, under PGD at full eps."""

    def averaged(self) -> dict[str, torch.Tensor] | None:
        """The weights to validate and to save, if those are not the trained weights themselves."""
        return None

    def score(self, diagnosis: ClassDiagnosis) -> float:
        """The quality of the network on the validation samples. The epoch with the largest score is saved."""
        return float(diagnosis.robust.mean())

    def finish(self, model: Classifier, validation: Iterable[Batch]) -> None:
        """After training, on the best weights: what is fitted on held-out samples, once."""

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass


HARDENINGS: Registry[type[Hardening]] = Registry("hardening method")
