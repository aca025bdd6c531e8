"""Which known data set some data are, by their labels in order or by the names of their classes."""

import hashlib
from collections.abc import Sequence

import numpy as np

# The SHA-256 of all labels of a split, in order, as little-endian int64. Of CIFAR-10 the test split is known.
_LABELS = {
    "e474323ac02fc156161b0bbb1f8c9cfe": "mnist",
    "2fd8de6bdb8d11780b4b96dc57847bcf": "mnist",
    "e3245b63f7c40d1c8b652835f19744d9": "fashionmnist",
    "d51d859896c55775b9e9e219b77ff03b": "fashionmnist",
    "cbb7365de8ed11f05cc4c3a1e7f78144": "cifar10",
}
_CLASSES = {
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    "fashionmnist": (
        "t-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
    ),
}  # fmt: skip


def known_set(labels: np.ndarray, class_names: Sequence[str] | None) -> str:
    """The name of the data set, as torchvision's in lower case; "" where neither labels (n,) nor names tell it."""
    found = _LABELS.get(hashlib.sha256(labels.astype("<i8").tobytes()).hexdigest()[:32], "")
    names = sorted(name.lower() for name in class_names or ())
    return found or next((name for name, classes in _CLASSES.items() if names == sorted(classes)), "")
