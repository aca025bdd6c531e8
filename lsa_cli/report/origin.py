"""Who chose a setting: the user, or the author of the checkpoint."""

RADIUS_CODE = "radius-not-chosen"  # of the finding that the checkpoint sets a very small radius
BESIDE = " beside the checkpoint"  # ends the path of a lsa.yaml that was found there and not named by the user


def is_of_others(origin: str) -> bool:
    """Whether a setting comes from the author of the checkpoint, not from the user or the default of the data."""
    return origin == "the checkpoint" or origin.endswith(BESIDE)
