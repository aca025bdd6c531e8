"""Who chose a setting: the user, or whoever made the checkpoint."""

RADIUS_CODE = "radius-not-chosen"  # of the finding that the checkpoint sets a radius of next to nothing
BESIDE = " beside the checkpoint"  # behind the path of a lsa.yaml that was found there, and that nobody chose


def is_of_others(origin: str) -> bool:
    """Whether a setting comes from whoever made the checkpoint, and not from the user of lsa or the data's custom."""
    return origin == "the checkpoint" or origin.endswith(BESIDE)
