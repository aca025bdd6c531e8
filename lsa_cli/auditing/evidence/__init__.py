"""Evidence: why to believe the number. Networks that cannot carry a verdict are refused, doubtful ones are told.

`before`: what can be known before any attack, and `clean`: what clean accuracy tells. `examine`: checks that spend passes of their own on a few samples, of
the `network` by itself and by `trials` of attacks, those of `concealed` and of `stronger` among them. `compare`: checks that read what the audit measured anyway.
`judge`: the one statistical rule, and the verdict.
"""

from lsa_cli.auditing.evidence.before import (
    LogitsSummary,
    check_labels,
    empty_classes,
    refuse_useless_logits,
    trained_on_the_same,
    useless_logits,
    without_gradient,
    zero_gradients,
)
from lsa_cli.auditing.evidence.clean import (
    claim,
    class_order,
    is_same,
    lost_classes,
    near_chance,
    normalization,
    rows_to_try,
    usual_normalizations,
)
from lsa_cli.auditing.evidence.compare import Measured, compare
from lsa_cli.auditing.evidence.examine import FORWARD, examine, probe_passes, probe_size
from lsa_cli.auditing.evidence.judge import Checked, evidence_of, exceeds, verdict
from lsa_cli.auditing.evidence.network import random_forward
from lsa_cli.auditing.evidence.probe import Probe
from lsa_cli.auditing.evidence.stronger import Survivors

__all__ = [
    "FORWARD",
    "Checked",
    "LogitsSummary",
    "Measured",
    "Probe",
    "Survivors",
    "check_labels",
    "claim",
    "class_order",
    "compare",
    "empty_classes",
    "evidence_of",
    "examine",
    "exceeds",
    "is_same",
    "lost_classes",
    "near_chance",
    "normalization",
    "probe_passes",
    "probe_size",
    "random_forward",
    "refuse_useless_logits",
    "rows_to_try",
    "trained_on_the_same",
    "useless_logits",
    "usual_normalizations",
    "verdict",
    "without_gradient",
    "zero_gradients",
]
