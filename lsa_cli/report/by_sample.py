"""Which samples of a report are classified correctly: as they are, under every budget attack, under one attack."""

from lsa_cli.report.schema import Samples


def clean(samples: Samples) -> list[bool]:
    return [label == clean for label, clean in zip(samples.label, samples.clean, strict=True)]


def robust(samples: Samples) -> list[bool]:
    return [right and broken is None for right, broken in zip(clean(samples), samples.broken_by, strict=True)]


def under(samples: Samples, attack: str) -> list[bool] | None:
    """None for an attack that did not run on all samples."""
    return [flag == "1" for flag in samples.held[attack]] if attack in samples.held else None
