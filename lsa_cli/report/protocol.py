"""What was audited and how: the network, the samples, the threat model, and every setting that changes a number."""

from typing import Any, Literal

from pydantic import Field

from lsa_cli.report.row import Row


class Subject(Row):
    """The network that was audited."""

    checkpoint: str
    sha256: str | None
    size: int | None = Field(description="bytes of the file")
    format: str
    architecture: str
    arch_args: dict[str, Any] = {}
    parameters: int
    mean: list[float] | None
    std: list[float] | None
    input_shape: list[int]
    input_range: tuple[float, float] | None
    output: str
    class_names: list[str]
    history: list[dict[str, Any]] = []
    notes: list[str] = Field(default=[], description="what was done to read and build it")


class Data(Row):
    """The samples it was audited on."""

    source: str
    split: str
    transform: str
    n: int
    available: int
    selection: str = Field(description="all, or how the subset was drawn")
    fingerprint: str = Field(description="sha256 over source, split, indices and labels")


class ThreatModel(Row):
    norm: str
    eps: float
    text: str = Field(description='as people write it: "8/255"')
    origin: str = Field(description="its source: option, configuration, checkpoint, or the default of the data")


class Protocol(Row):
    """Every setting that changes a number, and what the numbers were computed with."""

    threat: ThreatModel
    attacks: list[str]
    noises: list[str]
    layers: list[str] = Field(description="selectors as given")
    measure: str
    aggregate: Literal["sample", "batch"]
    eta: float
    sigma: Literal["samples", "layers"]
    top_k: int | None
    seed: int
    batch_size: int
    device: str
    threads: int
    attacked: str = Field("the network itself", description="what attacks ran on; verdicts are the network's own")
    settings: dict[str, Any] = Field(description="effective settings, by option name")
    settings_from: dict[str, str] = Field(description="where each setting that is not a default comes from")
    versions: dict[str, str]
    files: dict[str, str] | None = Field(
        None,
        description="SHA-256 of the Python code and of the data file that the settings name, by path; size and time of "
        "the last change of files above 1 GiB; null in reports of earlier versions",
    )
