"""The two parts of an audit that are used alone, in Python: an attack on a network in memory, and the layer scan."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from lsa_cli.attacks import ATTACKS, Attack, make_threat
from lsa_cli.attacks.ensemble import confined
from lsa_cli.auditing.cost import numerics
from lsa_cli.auditing.layer_analysis import analyse_layers
from lsa_cli.auditing.network import Network, check_backward, open_network
from lsa_cli.auditing.observation import Observation, observe
from lsa_cli.auditing.plan import chosen_layers, mvl_rule, usual_batch_size
from lsa_cli.data import from_object
from lsa_cli.errors import LayerError, UsageError
from lsa_cli.measures import MEASURES
from lsa_cli.registry import build, parse_number, parse_spec, unknown
from lsa_cli.settings import AuditSettings, settings_from
from lsa_cli.settings.in_python import names_of_python

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class AttackOnNetwork:
    """An attack with its threat model, for any network in memory."""

    attack: Attack

    @names_of_python()
    @torch.inference_mode(False)  # attacks need gradients, wherever the caller is
    def __call__(self, model: nn.Module, x: Any, y: Any, *, seed: int = 0) -> torch.Tensor:
        """x_adv (N, ...) in float32 for inputs x (N, ...) in [0, 1] or uint8, and labels y (N,), on the device of x.

        The model runs in evaluation mode and is unchanged afterwards. x_adv is within eps of x and within [0, 1]; where no
        adversarial example was found, it is the input with the smallest margin of those that the attack kept. seed: of random starts; the
        random numbers of a sample depend on the seed and its place in x, not on the batch.

        Raises DataError for inputs or labels of a wrong shape, range or type, and NumericalError for a model without an
        input gradient.
        """
        y = np.asarray(y) if isinstance(y, list) else y
        _refuse_other(model, x=x, y=y)
        network = open_network(model, AuditSettings(), {}, (x, y))
        if self.attack.uses_gradient:
            check_backward(network)
        found = []
        with numerics(torch.get_num_threads()):
            for rows in _batches(network, self.attack.inputs_each):
                inputs, index = network.inputs(rows), torch.from_numpy(rows)
                labels = torch.from_numpy(network.labels[rows]).to(network.device)
                x_adv = self.attack(network.classifier, inputs, labels, index=index, seed=seed)
                finite = torch.isfinite(x_adv.flatten(1)).all(1).reshape(-1, *[1] * (inputs.ndim - 1))
                found.append(confined(self.attack, torch.where(finite, x_adv, inputs), inputs))
        return torch.cat(found).to(x.device if isinstance(x, torch.Tensor) else "cpu")


@names_of_python()
def attack(name: str, **options: Any) -> AttackOnNetwork:
    """An attack by its name, as for `lsa audit --attack`: attack("pgd", eps="8/255", steps=40)(model, x, y) -> x_adv.

    options: eps, the radius in units of images in [0, 1], which must be given; norm, linf by default; and the options of
    the attack (`lsa list attacks pgd`). They can also be in the name: "pgd:eps=8/255,steps=40".

    Raises UsageError for an unknown name or option, a wrong value, and a norm that the attack is not defined for.
    """
    kind, given = parse_spec(name, "attack")
    factory = ATTACKS.get(kind)
    if twice := sorted(given.keys() & options.keys()):
        raise UsageError(f"attack '{name}': {twice[0]} is given twice")
    options = {**given, **options}
    names = ["eps", "norm", *(field.name for field in dataclasses.fields(factory) if field.name != "threat")]
    for option in options:
        if option not in names:
            raise UsageError(f"attack '{name}': {unknown('option', option, names)}")
    if "eps" not in options:
        raise UsageError(f"attack '{name}': give the radius, such as eps=\"8/255\"")
    eps, norm = parse_number(options.pop("eps"), f"attack '{name}': eps"), options.pop("norm", "linf")
    return AttackOnNetwork(build(factory, options, f"attack '{name}'", threat=make_threat(norm, eps)))


@names_of_python()
def scan(
    model: nn.Module,
    x: Any,
    x_adv: Any,
    *,
    layers: str | Sequence[str] | None = None,
    measure: str | None = None,
    norm: str | None = None,
    eta: float | None = None,
    sigma: str | None = None,
    top_k: int | None = None,
    seed: int = 0,
) -> "pd.DataFrame":
    """The layers of a network in memory, in the order they run, under the inputs x_adv (N, ...) against x (N, ...).

    x, x_adv: inputs in [0, 1] or uint8. norm: in which the random noise of the amplification is as large as x_adv - x,
    linf by default. The other arguments are the options of `lsa audit` of these names.

    Columns as in report.tables["layers"]: layer, layer_kind, position, mean, sd, low, high (95% interval of the mean), gain,
    amplification, stability, in_mvl, noise_floor, undefined (docs/reading-a-report.md). Means are relative errors
    (arXiv 2202.02626, eq. 12) unless `measure` names another one.

    Raises DataError for inputs of a wrong shape or range, LayerError for layers that the network does not have, and
    UsageError for wrong settings.
    """
    import pandas as pd

    from lsa_cli.report.tables import layer_rows

    asked = {
        "layers": layers,
        "measure": measure,
        "norm": norm,
        "eta": eta,
        "sigma": sigma,
        "top_k": top_k,
        "seed": seed,
    }
    settings = settings_from(asked)
    if settings.layers == ["none"]:
        raise UsageError("layers none leaves no layer to scan; name layers, or leave it out")
    _refuse_other(model, x=x, x_adv=x_adv)
    if np.shape(x) != np.shape(x_adv):
        raise UsageError(f"x has shape {tuple(x.shape)} and x_adv {tuple(x_adv.shape)}; give one x_adv for each x")
    threat = make_threat(settings.norm or "linf", 0)
    compare = MEASURES.get(settings.measure or "relative-error")
    no_labels = np.zeros(len(x), dtype=np.int64)
    network = open_network(model, settings, {}, (x, no_labels))
    other = dataclasses.replace(network, data=from_object((x_adv, no_labels), "x_adv"))
    _, chosen, notes = chosen_layers(network, settings)
    if not chosen:
        raise LayerError(notes[0].message)
    names, seen = [layer.name for layer in chosen], []
    with numerics(torch.get_num_threads()):
        for rows in _batches(network, 3):
            inputs, moved = network.inputs(rows), other.inputs(rows)
            place = torch.from_numpy(rows).to(network.device)
            seen.append(observe(network.classifier, names, compare, threat, inputs, moved, place, seed=seed))
    analysis = analyse_layers(chosen, Observation.concatenate(seen), mvl_rule(settings), seed)
    return pd.DataFrame(layer_rows(analysis))


def _refuse_other(model: Any, **arrays: Any) -> None:
    if not isinstance(model, nn.Module):
        raise UsageError(f"{type(model).__name__} is no torch.nn.Module; for a checkpoint file use lsa_cli.audit")
    for name, array in arrays.items():
        if not hasattr(array, "shape"):
            raise UsageError(f"{name} is a {type(array).__name__}; give a tensor or a numpy array")


def _batches(network: Network, inputs_each: int) -> Iterator[np.ndarray]:
    """The places of the samples, batch by batch. inputs_each: inputs for each sample in one pass."""
    size, count = max(1, usual_batch_size(network) // inputs_each), len(network.data)
    return (np.arange(start, min(start + size, count)) for start in range(0, count, size))
