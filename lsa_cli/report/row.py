"""Row: the base class of every part of a report, and shares."""

import json
import math
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lsa_cli.errors import printable


def finite(value: Any) -> float | None:
    """The number, or None for NaN and infinity."""
    return float(value) if math.isfinite(value) else None


def _printable(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {_printable(key): _printable(item) for key, item in value.items()}
    return [_printable(item) for item in value] if isinstance(value, (list, tuple)) else value


class Row(BaseModel):
    """A part of a report. Control codes in texts are escaped: names may come from untrusted files."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, defer_build=True)  # commands start sooner

    @model_validator(mode="before")
    @classmethod
    def _is_printable(cls, values: Any) -> Any:
        return _printable(values)

    def to_json(self) -> str:
        return json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


class Rate(Row):
    """A share: count of n, with its 95% Wilson interval; those of the verdict of a --gate-only run are wider, so that they
    hold wherever it stops. value and bounds are null for n = 0."""

    count: int
    n: int
    value: float | None
    low: float | None
    high: float | None


class Draws(Row):
    """Accuracy of a stochastic network over several evaluations of the same inputs."""

    n: int = Field(description="evaluations")
    mean: float
    sd: float = Field(description="standard deviation over evaluations")
    worst: Rate = Field(description="samples that are classified correctly in every evaluation")


class Proof(Row):
    """The lower bound of the robust accuracy: samples that provably keep their class."""

    robust: Rate | None = Field(
        description="of all samples: classified correctly, and proven to be so for every input within the budget; a lower "
        "bound; null where it was left out"
    )
    threat: str = Field(description="norm and radius of the proof, which cover every budget attack")
    seconds: float = Field(description="time that the proof took")
    left_out: str = Field(default="", description="the reason why it was left out")
