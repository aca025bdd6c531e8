"""Image files with labels from a folder tree or a CSV table."""

import csv
import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from lsa_cli.data.base import (
    DATA_SOURCES,
    TEST_SPLITS,
    USUAL_LABELS,
    LabelledData,
    SourceRequest,
    Traits,
    check_file,
    number_labels,
    pick_name,
    pick_split,
    with_traits,
)
from lsa_cli.data.images import ImageFiles, image_data
from lsa_cli.errors import DataError, SplitError, UsageError

_USUAL_PATHS = (
    "path", "paths", "file", "files", "filename", "file_name", "filepath", "file_path", "image", "images", "image_path",
    "image_file", "image_name", "img", "img_path", "id_code",
)  # fmt: skip


def path_files(paths: list[Path]) -> ImageFiles:
    return ImageFiles(len(paths), lambda rows: [paths[row] for row in rows], lambda row: str(paths[row]))


@DATA_SOURCES.register("imagefolder")
@with_traits(Traits())
def open_imagefolder(request: SourceRequest) -> LabelledData:
    """imagefolder:DIR[?split=test&order=text]: one folder per class; a split is a folder above those.

    The classes are sorted by name. If all names are whole numbers, they are sorted as numbers, 2 before 10; with
    order=text as text, as in torchvision's ImageFolder.
    """
    from torchvision.datasets import ImageFolder

    request.allow("imagefolder", "order")
    if request.options.get("order", "text") != "text":
        raise UsageError(f"--data: order={request.options['order']} must be order=text, or be left out")
    root = Path(request.location)
    called = root.name
    split = _folder_split(root, request)
    root = root / split
    spec = f"imagefolder:{root}"
    if not root.is_dir():
        kind = SplitError if split and root.parent.is_dir() else DataError
        raise kind(f"{spec}: there is no folder {root}; it must hold one folder of images for each class")
    try:
        found = ImageFolder(str(root), allow_empty=True)
    except OSError as error:
        raise DataError(f"{spec}: {error}; it must hold one folder of images for each class") from error
    files = path_files([Path(path) for path, _ in found.samples])
    labels, classes = np.asarray(found.targets, dtype=np.int64), list(found.classes)
    if "order" not in request.options and all(re.fullmatch(r"[0-9]{1,18}", folder) for folder in classes):
        order = sorted(range(len(classes)), key=lambda place: int(classes[place]))
        labels, classes = np.argsort(order)[labels], [classes[place] for place in order]
    return replace(image_data(request, spec, labels, files, classes, split=split), called=called)


def _folder_split(root: Path, request: SourceRequest) -> str:
    """The split that the user names. Without one, folders `train` and a test split are read as splits, not classes."""
    if request.split is not None or not (root / "train").is_dir():
        return request.split or ""
    names = sorted(path.name for path in root.iterdir() if path.is_dir())
    return (
        pick_split(names, request, f"imagefolder:{root}")
        if len(names) > 1 and set(names) <= {"train", *TEST_SPLITS}
        else ""
    )


@DATA_SOURCES.register("csv")
@with_traits(Traits(suffixes=(".csv",)))
def open_csv(request: SourceRequest) -> LabelledData:
    """csv:FILE.csv[?root=DIR&path=COLUMN&label=COLUMN&ext=png]: a table of image files, relative to it or to root, and labels.

    Labels are whole numbers from 0, or text: then the texts, sorted, are the classes. ext is added to each path (Kaggle's
    tables leave it out). A column `split` selects rows by --split.
    """
    request.allow("csv", "root", "path", "label", "ext")
    table = Path(request.location)
    spec = f"csv:{table}"
    check_file(table, spec)
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = list(reader.fieldnames or ())
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{spec} cannot be read as a table of comma-separated values: {error}") from error
    path_column = pick_name(columns, _USUAL_PATHS, "path", request, spec)
    label_column = pick_name(columns, USUAL_LABELS, "label", request, spec)
    split = request.split or ""
    if "split" in columns:
        split = pick_split(sorted({row["split"] or "" for _, row in rows}), request, spec)
        rows = [(line, row) for line, row in rows if row["split"] == split]
    elif split:
        raise SplitError(f"{spec} has no column 'split' in which to find '{split}'; it has {', '.join(columns)}")
    labels, class_names = number_labels(
        [row[label_column] for _, row in rows], lambda number: f"{spec}: line {rows[number][0]}"
    )
    root = Path(request.option("root", str(table.parent)))
    ending = "." + request.options["ext"].lstrip(".") if "ext" in request.options else ""
    paths = []
    for line, row in rows:
        if not row[path_column]:
            raise DataError(f"{spec}: line {line} names no image file")
        paths.append(root / f"{row[path_column].strip()}{ending}")
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise DataError(
            f"{spec}: {len(missing):,} of {len(paths):,} image files are missing, first {missing[0]}; give their "
            f"folder with {request.adding('root=DIR')}, and with ext=png their ending if the table leaves it out"
        )
    return image_data(request, spec, labels, path_files(paths), class_names, split=split)
