"""Job: everything that training needs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lsa_cli.attacks.threat import Threat
from lsa_cli.data import LabelledData
from lsa_cli.hardening.methods import Hardening
from lsa_cli.hardening.recipes import Recipe
from lsa_cli.models.classifier import Classifier


@dataclass(frozen=True)
class Job:
    """Everything that training needs.

    train, validation: indices into `data`. identity: the settings that decide the result, which a resumed run must have.
    """

    model: Classifier
    method: Hardening
    data: LabelledData
    labels: np.ndarray
    train: np.ndarray
    validation: np.ndarray
    threat: Threat
    recipe: Recipe
    trainable: frozenset[str]
    device: torch.device
    seed: int
    state_file: Path
    identity: dict[str, Any]
    resume: bool
