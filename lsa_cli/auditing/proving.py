"""Runs the proof of an audit: on the samples of a block, and on the first few to measure what it costs."""

import dataclasses
import time

import numpy as np
import torch

from lsa_cli import distributed
from lsa_cli.attacks.base import undisturbed
from lsa_cli.auditing.cost import Speed, estimate_seconds, measure_speed, numerics, total_work
from lsa_cli.auditing.execution import Batch, Execution
from lsa_cli.auditing.plan import AuditPlan
from lsa_cli.auditing.proof import SHARE, PlannedProof
from lsa_cli.auditing.results import ProofRows
from lsa_cli.data import batches
from lsa_cli.failures import is_out_of_memory
from lsa_cli.models.classifier import predicted_class
from lsa_cli.proofs import AT_ONCE

_TIMED = 4  # samples
_LONG = 1.0  # seconds of one sample, after which no others are timed


def prove(run: Execution, inputs: Batch, right: np.ndarray) -> ProofRows | None:
    """The proof of the samples of a block; None where the plan has none. right (N,) bool: classified correctly."""
    proof = run.plan.proof
    if proof is None or proof.prover is None:
        return None
    run.step("proof", 0)
    began, device, proven = time.monotonic(), run.plan.network.device, np.zeros(len(right), dtype=bool)
    for rows in batches(np.flatnonzero(right), AT_ONCE):
        run.stop_if_late()
        x, y = (tensor[torch.from_numpy(rows)].to(device) for tensor in inputs[:2])
        proven[rows] = proof.prover.proves(x, y, proof.threat).cpu().numpy()
        run.step("proof", proof.passes * len(rows))
    return ProofRows(proven, time.monotonic() - began)


def chosen_proof(run: Execution) -> PlannedProof | None:
    """The proof of the plan with its cost, by the first rank; left out where it costs too much. A resumed audit does as before."""
    proof = run.plan.proof
    if proof is None or proof.prover is None:
        return proof

    def choose() -> dict[str, np.ndarray]:
        saved = run.journal.get("proof", 0) if run.journal is not None else None
        if saved is None:
            run.progress("time of the proof", 0, run.total)
            found = measured(run.plan, measure_speed(run.plan))
            saved = {"left_out": np.array(found.left_out), "passes": np.array(found.passes)}
            if run.journal is not None:
                run.journal.put("proof", 0, saved)
        return saved

    saved = distributed.first(choose)
    left_out, passes = str(saved["left_out"]), float(saved["passes"])
    return proof.without(left_out) if left_out else dataclasses.replace(proof, passes=passes)


def estimated(plan: AuditPlan) -> tuple[AuditPlan, float]:
    """The plan with the cost of its proof, and the estimated seconds of the audit on this machine."""
    began, timing = time.monotonic(), 0.0
    speed = measure_speed(plan)
    if plan.proof is not None and plan.proof.prover is not None:
        plan = dataclasses.replace(plan, proof=measured(plan, speed))
        timing = time.monotonic() - began  # the audit measures the same once more
    return plan, timing + estimate_seconds(plan, speed)


def measured(plan: AuditPlan, speed: Speed) -> PlannedProof:
    """The proof of the plan with its cost, timed on the first few samples; left out where nobody asked for it and it costs too
    much.

    The plan must have a prover.
    """
    proof = plan.proof
    assert proof is not None
    assert proof.prover is not None
    network, rows = plan.network, plan.index[: plan.batch_size]
    x = network.inputs(rows)
    y = torch.from_numpy(network.labels[rows]).to(network.device)
    with numerics(plan.threads), torch.no_grad(), undisturbed(network.classifier):
        right = predicted_class(network.classifier(x)) == y
        some = right.nonzero().flatten()[:_TIMED]
        if not len(some):
            return proof
        try:
            seconds = _seconds_each(proof, x[some[:1]], y[some[:1]])
            if seconds < _LONG:  # the first call is slower than others
                seconds = _seconds_each(proof, x[some], y[some])
        except Exception as error:
            if not is_out_of_memory(error) or proof.is_asked:
                raise
            return proof.without("it does not fit in the memory")
    passes, rest = seconds / speed.each, total_work(plan, speed.known)
    times = float(right.float().mean()) * len(plan.index) * passes / rest
    if times > SHARE and not proof.is_asked:
        return proof.without(
            f"it would take about {times:.2g} times as long as the rest of the audit, and --full alone proves where that is at "
            f"most {SHARE:g}; --prove computes it in any case"
        )
    return dataclasses.replace(proof, passes=passes)


def _seconds_each(proof: PlannedProof, x: torch.Tensor, y: torch.Tensor) -> float:
    assert proof.prover is not None
    began = time.monotonic()
    proof.prover.proves(x, y, proof.threat)
    return (time.monotonic() - began) / len(x)
