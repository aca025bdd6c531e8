"""AuditReport: the result of an audit as plain numbers. Renderers, the gate and `lsa report` read nothing else.

Shares are in [0, 1]; a number that does not exist is null, never 0. SCHEMA_VERSION: a new minor adds fields, a new major
breaks readers.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from lsa_cli.report.notebook import Interactive
from lsa_cli.report.protocol import Data, Protocol, Subject
from lsa_cli.report.row import Draws, Proof, Rate, Row

SCHEMA_VERSION = "1.4"

# Best first. quick look: no check found a reason for doubt, but the attacks were few or short.
EvidenceVerdict = Literal["trusted", "quick look", "doubtful", "invalid"]

# An image inside the report itself: a page fetches and runs nothing for it.
Picture = Annotated[str, Field(pattern=r"^data:image/png;base64,[A-Za-z0-9+/]+=*$", max_length=40_000)]


class LayerRow(Row):
    """One layer under one attack. mean: of the comparison measure over samples."""

    name: str
    kind: str
    shape: list[int]
    mean: float | None
    sd: float | None
    low: float | None = Field(description="95% bootstrap interval of the mean")
    high: float | None
    gain: float | None = Field(description="mean over the previous layer's mean (first: over the input's)")
    amplification: float | None = Field(description="mean over the mean under random noise of the same size")
    stability: float = Field(description="share of bootstrap resamples in which the layer is in the MVL")
    noise_floor: float | None = Field(
        default=None,
        description="of a stochastic network: mean between two clean passes, subtracted before layers are ranked",
    )
    in_mvl: bool
    undefined: int = Field(description="rows without a measure (clean output zero, or not finite)")

    @property
    def above_floor(self) -> float | None:
        """The mean minus the noise floor."""
        return None if self.mean is None else self.mean - (self.noise_floor or 0.0)


class LayerAnalysis(Row):
    """The Layer Sustainability Analysis under one attack or noise."""

    rows: list[LayerRow]
    mvl: list[str] = Field(description="most vulnerable layers, worst first")
    mvl_rule: str = Field(description="the rule in words, and whether any layer passed it")
    mu: float | None
    sigma: float | None
    observations: int = Field(description="number of samples, or batches, in a mean")
    input_error: float | None = Field(description="mean measure on the inputs themselves")
    by_class: list[list[float | None]] | None = Field(description="mean by layer (rows) and class (columns)")
    mvl_by_class: list[list[str]] | None


class ClassRow(Row):
    """One class under one attack."""

    name: str
    clean: Rate
    robust: Rate
    target: str | None = Field(description="class that most successful attacks end in")
    concentration: float | None = Field(description="share of successful attacks that end there")
    proven: Rate | None = Field(default=None, description="proven robust; in the verdict of an audit with a proof")


class ClassSummary(Row):
    """Over the classes that have samples; by formula, in accuracy shares (variance: shares squared)."""

    worst_class: str | None
    worst: float | None
    mean: float | None
    max_discrepancy: float | None = Field(description="largest minus smallest")
    variance: float | None = Field(description="population variance")
    sd: float | None
    nsd: float | None = Field(description="sd / mean")
    weight_norm_correlation: float | None = Field(
        description="Spearman correlation of the last layer's weight norms with the class robust accuracies"
    )


class Distance(Row):
    """Size of the perturbations of successful attacks (for noise: of all), in the threat's norm."""

    norm: str
    n: int
    mean: float | None
    median: float | None
    largest: float | None


class AttackOutcome(Row):
    """The result of one attack or noise on all samples. Layers are scanned under it."""

    name: str
    kind: Literal["budget", "minimal", "noise"] = Field(
        description="minimal: searches for the smallest perturbation, which counts if it is within the budget"
    )
    spec: str
    settings: dict[str, Any]
    robust: Rate = Field(
        description="of all samples: classified correctly, clean and under this attack; an upper bound"
    )
    success: Rate = Field(description="of the samples that are classified correctly clean: turned within the budget")
    distance: Distance
    seconds: float
    layers: LayerAnalysis | None
    classes: list[ClassRow]
    class_summary: ClassSummary
    confusion: list[list[int]] = Field(
        description="samples classified correctly clean: true class (rows), class predicted under the attack (columns)"
    )
    draws: Draws | None = Field(default=None, description="of a stochastic network: robust is its mean")
    mismatches: int = Field(description="predictions in the first block that changed in another batch size")
    discarded: int = Field(description="perturbed inputs out of budget or not finite: they count as failed attacks")


class Ranked(Row):
    """The samples that a round of the ranked cascade attacked."""

    robust: int = Field(description="samples that are still robust before the round")
    first: int = Field(description="the nearest of them to the decision boundary, which the round attacked at first")
    last: int = Field(description="as first, in the end: the round goes farther out where it breaks samples far out")
    far: int = Field(description="random ones of the others that it attacked as well")
    broken_far: int = Field(description="of these, broken")


class Stage(Row):
    """One attack of the cascade. It runs on samples that are still robust after all attacks before it."""

    attack: str
    spec: str
    settings: dict[str, Any]
    tried: int = Field(description="samples it was run on")
    broke: int
    robust: Rate = Field(description="share of all samples that are still robust after this attack; an upper bound")
    seconds: float
    ranked: Ranked | None = Field(default=None, description="null where it ran on all that were still robust")
    by_evidence: bool = Field(
        default=False, description="the evidence added it, because it breaks what the others missed"
    )


class AttackPair(Row):
    """Two attacks compared by class."""

    weaker: str
    stronger: str
    spearman: float | None = Field(description="rank correlation of the two class-wise robust accuracies")
    gain: int = Field(description="net samples that only the stronger one breaks")
    gain_on_weak_classes: float | None = Field(
        description="share of the gain in classes below the median robust accuracy under the weaker attack"
    )


class CurvePoint(Row):
    eps: float
    robust: Rate


class Curve(Row):
    """Robust accuracy over radii under one attack; score is the sum in percent (R&G of arXiv 2202.02626)."""

    attack: str
    points: list[CurvePoint]
    score: float


class EstimateStratum(Row):
    """Robust samples of similar margins, of which the cascade ran on a random part."""

    size: int
    checked: int
    broken: int


class Estimate(Row):
    """The robust accuracy after the whole cascade, estimated from the part of the robust samples that it ran on."""

    value: float = Field(description="unbiased: each checked sample counts size / checked times of its stratum")
    low: float = Field(
        description="95% interval; it covers both random choices, of samples and of those for the cascade"
    )
    high: float
    survivors: int = Field(description="samples still robust after the attacks that ran on all samples")
    checked: int = Field(description="of these, drawn by margin for the cascade")
    broken: int = Field(description="of those, broken by it")
    strata: list[EstimateStratum] = Field(default=[], description="those nearest to the decision boundary first")


class Metric(Row):
    """A further metric (option --metrics), measured on some samples and their adversarial examples."""

    name: str
    n: int = Field(description="samples it was measured on")
    value: float | None
    unit: str
    quantiles: dict[str, float | None] = Field(default={}, description="by share (0.5: median), or mean")
    attack: str = Field(default="", description="the attack that made the adversarials")
    meaning: str


class Samples(Row):
    """One row per sample, stored as columns: what broke it first, when, and by which margin."""

    index: list[int] = Field(description="place in the data set")
    label: list[int]
    clean: list[int] = Field(description="class predicted for the sample as it is")
    broken_by: list[str | None] = Field(description="the first attack in the order of the audit; null for none")
    look: list[int | None] = Field(
        description="number of the forward pass at which the sample broke, from 1; null if not recorded"
    )
    margin: list[float | None] = Field(
        description="logit of the true class minus the largest other one, below zero where misclassified: there, or the lowest "
        "that any attack reached"
    )
    distance: list[float | None] = Field(description="size of the perturbation that broke it, in the attack's norm")
    held: dict[str, str] = Field(
        default={},
        description="by attack that ran on all samples: 1 for a sample that is classified correctly, clean and under it, else 0",
    )
    proven: list[bool] | None = Field(
        default=None, description="proven to be classified correctly within the whole budget; null without a proof"
    )


class Verdict(Row):
    """The numbers to quote."""

    clean: Rate
    robust: Rate | None = Field(
        description="of all samples: classified correctly, clean and under every budget attack; null without one"
    )
    attacks: list[str] = Field(description="the budget attacks over which the worst case is taken")
    classes: list[ClassRow] = Field(description="worst case over the budget attacks, by class")
    class_summary: ClassSummary | None
    statement: str
    meaning: str = Field(default="", description="the robust accuracy in words: how many inputs can be turned")
    draws: Draws | None = Field(default=None, description="of a stochastic network: robust is its mean")
    clean_draws: Draws | None = Field(default=None, description="of a stochastic network: clean is its mean")
    estimate: Estimate | None = Field(
        default=None, description="null unless the cascade ran on a part of the robust samples only"
    )
    proof: Proof | None = Field(default=None, description="null where none was asked for")

    @property
    def proven(self) -> Rate | None:
        """The proven robust accuracy."""
        return None if self.proof is None else self.proof.robust


class Warning(Row):
    code: str
    message: str


class Finding(Row):
    """A reason to doubt the robust accuracy."""

    code: str
    level: Literal["doubtful", "invalid"] = Field(description="invalid: the number means nothing")
    message: str
    advice: str = Field(description="what to do")


class CheckMade(Row):
    """One check of the evidence."""

    name: str
    n: int = Field(description="samples that it examined; for some checks modules or attacks")
    saw: dict[str, float | None] = Field(description="the numbers that it measured, by name")
    findings: list[str] = Field(default=[], description="codes of its findings")
    statement: str = Field(default="", description="the result as a sentence, of checks that have one")


class Evidence(Row):
    """Reasons to trust or doubt the verdict: checks for gradient masking, randomness, and attacks that fail silently."""

    verdict: EvidenceVerdict = Field(
        description="quick look: no check found a reason for doubt, but the audit was --quick, every attack takes fewer than five "
        "steps, or the samples are fewer than 10"
    )
    findings: list[Finding]
    checks: list[CheckMade]

    @property
    def statements(self) -> list[str]:
        """Results as sentences, of checks without a finding; a finding is a sentence itself."""
        return [check.statement for check in self.checks if check.statement and not check.findings]


class GateResult(Row):
    """One limit: held, breached, or not decided. A limit that is not decided does not pass."""

    metric: str
    limit: float
    direction: Literal["at least", "at most"]
    measured: float | None
    low: float | None = None
    high: float | None = None
    passed: bool
    message: str
    severity: Literal["error", "warning"] = "error"
    decided_by: Literal["bound", "point", "sequence"] = Field(
        default="point", description="the 95% interval, the number itself, or an anytime-valid confidence sequence"
    )

    @property
    def allowed_unmeasured(self) -> bool:
        """It passes because of allow_not_run, without a number."""
        return self.passed and self.measured is None

    @property
    def state(self) -> Literal["held", "breached", "undecided"]:
        """undecided: not measured, or the limit lies within the interval."""
        if self.passed:
            return "held"
        if self.measured is None:
            return "undecided"
        low, high = (self.measured, self.measured) if self.decided_by == "point" else (self.low, self.high)
        assert low is not None
        assert high is not None
        reached = high >= self.limit if self.direction == "at least" else low <= self.limit
        return "undecided" if reached else "breached"


class Early(Row):
    """A --gate-only run: it took samples in random order until every limit was decided."""

    used: int = Field(description="samples taken")
    population: int = Field(description="samples of a full audit, to which the bounds refer")
    alpha: float = Field(description="largest probability that any limit is decided wrongly")
    full_seconds: float = Field(
        description="time of a full audit by the same attacks, estimated from the time of this one"
    )


class Example(Row):
    """A sample that an attack broke, as pictures of at most 64 pixels a side."""

    index: int = Field(description="place in the data set")
    label: str
    predicted: str = Field(description="class predicted for the perturbed input")
    attack: str
    margin: float | None = Field(description="logit of the true class minus the largest other one")
    distance: float | None = Field(description="size of the perturbation in the attack's norm")
    clean: Picture
    adversarial: Picture
    difference: Picture = Field(description="grey where nothing changed")
    gain: float = Field(description="factor of the difference in its picture")


class AuditReport(Interactive, Row):
    """One audit of one checkpoint."""

    schema_version: str = SCHEMA_VERSION
    tool: str
    status: Literal["running", "complete", "interrupted", "failed"]
    created: str
    seconds: float
    subject: Subject
    data: Data
    protocol: Protocol
    verdict: Verdict
    outcomes: list[AttackOutcome]
    cascade: list[Stage] = Field(default=[], description="attacks that only count for the verdict, in order")
    not_run: list[str] = Field(
        default=[],
        description="what did not run, or not to its end, because the time budget was exhausted or the audit ended",
    )
    pairs: list[AttackPair] = []
    curves: list[Curve] = []
    metrics: list[Metric] = []
    warnings: list[Warning] = []
    evidence: Evidence | None = Field(default=None, description="null where no checks were made")
    gates: list[GateResult] = []
    early: Early | None = Field(default=None, description="null for an audit of all its samples")
    samples: Samples | None = None
    examples: list[Example] = Field(
        default=[], max_length=6, description="samples that an attack broke, the most confident mistakes first"
    )

    @property
    def why_not_run(self) -> str:
        """Why what `not_run` lists did not run: a clause."""
        ended = {"interrupted": "the audit was interrupted", "failed": "the audit failed"}
        return ended.get(self.status, "the time budget is exhausted")

    @property
    def failed_gates(self) -> list[GateResult]:
        """The limits that make the exit code 1."""
        return [gate for gate in self.gates if not gate.passed and gate.severity == "error"]
