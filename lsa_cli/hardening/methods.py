"""Hardening: the interface between a training method and the training loop."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from lsa_cli.attacks import Threat
from lsa_cli.auditing.class_diagnosis import ClassDiagnosis
from lsa_cli.layers import Layer
from lsa_cli.measures import Measure
from lsa_cli.models.classifier import Classifier
from lsa_cli.models.loading import Say
from lsa_cli.registry import Registry

Step = tuple[torch.Tensor, tuple[str, ...]]  # a mean loss, and the parameter groups that it updates


@dataclass(frozen=True)
class Task:
    """The settings that a method uses.

    threat, steps, step_size: of the training attack. layers: names of the regularized layers, most vulnerable first. gammas:
    the weight of each. attack_mode: the mode of the network while it is attacked, eval or train. samples, held_out: how many
    samples train and how many are held out. input_shape: of one sample.
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
    held_out: int
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
    """A method yields losses to the training loop, which owns optimizers, devices and ranks.

    A subclass is a dataclass with a field `task: Task`; its other fields are the options of --method name:key=value. State
    that training changes must be part of `state`, or a resumed run differs from an uninterrupted one. parts: the parts of
    the last loss (N,), for the log. findings: plain values for the history in the checkpoint.
    """

    regularizes: ClassVar[bool] = False  # the method uses the layer-wise regularizer
    diagnosed: ClassVar[bool] = False  # `end_epoch` receives a class diagnosis
    attacks: ClassVar[bool] = True  # the method trains on adversarial examples
    chooses: ClassVar[bool] = False  # `choose` chooses layers where none is named, and only their weights train
    adds_weights: ClassVar[bool] = False  # its surgery adds weights, which train even where all others are frozen
    recipe: ClassVar[dict[str, Any]] = {}  # values of the recipe that are the method's own defaults
    chosen_by: ClassVar[str] = "robust accuracy"  # the name of what `score` returns

    task: Task
    parts: dict[str, torch.Tensor]
    surgeries: list[dict[str, Any]] = []
    findings: dict[str, Any] = {}

    @property
    def averages(self) -> bool:
        """Whether the method saves an average of weights of its own, see `averaged`."""
        return False

    @property
    def takes_nothing(self) -> bool:
        """Whether `finish` has gone back to the weights before training."""
        return False

    @property
    def begins(self) -> float:
        """The share of the training after which the method is in effect. Earlier epochs are never the best one."""
        return 0.0

    def choose(
        self, model: Classifier, layers: Sequence[Layer], held_out: Sequence[Batch], say: Say
    ) -> tuple[str, ...]:
        """Names of the layers to train, if `chooses` is set. layers: of the network, in order. The model does not change."""
        raise NotImplementedError

    def prepare(self, model: Classifier) -> None:
        """Surgery on model.body, before there are optimizers. `surgeries` then describes it, so that `lsa_cli.models.surgery`
        can repeat it in use."""

    def groups(self, model: Classifier) -> dict[str, list[nn.Parameter]]:
        return {"weights": list(model.parameters())}

    def steps(self, model: Classifier, batch: Batch) -> Iterator[Step]:
        """Yield losses. Between two of them the loop runs the backward pass and updates the named groups."""
        raise NotImplementedError

    def begin_epoch(self, epoch: int) -> None:
        pass

    def end_epoch(self, model: Classifier, diagnosis: ClassDiagnosis) -> None:
        """Called if `diagnosed` is set. diagnosis: of the trained weights on held-out samples, under PGD at full eps."""

    def strengthen(self) -> str | None:
        """Make the training resist stronger attacks, after an epoch that resists only weak ones. Returns what is changed, None
        where nothing can be."""
        return None

    def averaged(self) -> dict[str, torch.Tensor] | None:
        """The weights to validate and to save; None for the trained weights themselves."""
        return None

    def score(self, diagnosis: ClassDiagnosis) -> float:
        """The quality of the network on the held-out samples. The epoch with the largest score is the best."""
        return float(diagnosis.robust.mean())

    def finish(self, model: Classifier, validation: Iterable[Batch]) -> str | None:
        """Called once after training with the best weights, for what is fitted on held-out samples. Returns what to say of it."""
        return None

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass


HARDENINGS: Registry[type[Hardening]] = Registry("hardening method")
