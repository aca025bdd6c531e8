"""Labelled images. A data source opens a spec such as npz:FILE or imagefolder:DIR."""

from lsa_cli.data import (  # noqa: F401  they register themselves
    arrays,
    folders,
    libraries,
    shards,
    tensors,
)
from lsa_cli.data.base import DATA_SOURCES, LabelledData, SourceRequest, Traits, with_traits
from lsa_cli.data.batches import batches, check_inputs, digests, fingerprint, prefetch, stratified_subset
from lsa_cli.data.factories import from_object
from lsa_cli.data.opening import code_of, file_of, location_of, may_download, open_data, runs_user_code, with_paths
from lsa_cli.data.sizes import ImageSize, square_size, torchvision_size, usual_size

__all__ = [
    "DATA_SOURCES",
    "ImageSize",
    "LabelledData",
    "SourceRequest",
    "Traits",
    "batches",
    "check_inputs",
    "code_of",
    "digests",
    "file_of",
    "fingerprint",
    "from_object",
    "location_of",
    "may_download",
    "open_data",
    "prefetch",
    "runs_user_code",
    "square_size",
    "stratified_subset",
    "torchvision_size",
    "usual_size",
    "with_paths",
    "with_traits",
]
