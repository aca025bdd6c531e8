# Made from the code: `pytest tests/test_docs.py --update-gold` writes it.
from typing import Any, Literal, TypedDict

class AuditKeywords(TypedDict, total=False):
    arch: Any
    arch_args: Any
    weights: Any
    trust_code: bool
    normalize: Any
    input_range: Any
    returns: Literal["logits", "probabilities"]
    output_index: Any
    noise_off: bool
    split: Any
    input_size: Any
    match_classes: Any
    limit: Any
    n: Any
    attack: Any
    quick: bool
    full: bool
    preset: Literal["quick", "full"]
    full_on: Any
    patient: bool
    prove: bool
    noise: Any
    corruption: Any
    norm: Any
    eps: Any
    steps: Any
    step_size: Any
    restarts: Any
    eps_grid: Any
    metrics: Any
    layers: Any
    measure: Any
    aggregate: Literal["sample", "batch"]
    eta: Any
    sigma: Literal["samples", "layers"]
    top_k: Any
    batch_size: Any
    budget: Any
    device: Any
    threads: Any
    no_fast: bool
    fast: bool
    seed: Any
    plugin: Any
    fail_under: Any
    fail_on: Any
    gate: Any
    gate_only: bool
    alpha: Any
    baseline: Any
    samples: Any
    json: Any
    md: Any
    html: Any
    junit: Any
    sarif: Any
    gitlab: Any
    openmetrics: Any
    card: Any
    badge: Any
    files: Any
    csv: Any
