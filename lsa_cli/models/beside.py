"""The normalisation that a configuration beside a model file states: config.json or preprocessor_config.json."""

import math
from pathlib import Path
from typing import Any

from lsa_cli.errors import CheckpointError
from lsa_cli.models.formats.reading import json_of, small_file

_NAMES = ("preprocessor_config.json", "config.json")
_PAIRS = (("image_mean", "image_std"), ("mean", "std"))


def normalization_beside(path: Path) -> tuple[str, str] | None:
    """MEAN/STD as for --normalize, for images in [0, 1], and the name of the file that states it; None without one."""
    folder = path if path.is_dir() else path.parent
    for name in _NAMES:
        try:
            config = json_of(small_file(folder / name), str(folder / name), "JSON")
        except (CheckpointError, OSError):
            continue
        nested = config.get("pretrained_cfg")
        for values in (config, nested if isinstance(nested, dict) else {}):
            for mean, std in _PAIRS:
                numbers = [_numbers(values.get(key)) for key in (mean, std)]
                if all(numbers) and len(numbers[0]) == len(numbers[1]) and min(numbers[1]) > 0:
                    return "/".join(",".join(f"{value:.6g}" for value in part) for part in numbers), name
    return None


def _numbers(value: Any) -> list[float]:
    """One or three finite numbers; empty for anything else."""
    values = value if isinstance(value, list) else [value]
    plain = all(isinstance(one, (int, float)) and not isinstance(one, bool) and math.isfinite(one) for one in values)
    return [float(one) for one in values] if plain and len(values) in (1, 3) else []
