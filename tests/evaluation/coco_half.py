"""The oracle's half of COCO128 as samples: its annotations, for photos that are only named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gradlight.evaluation.samples import Samples, open_samples


def pointing_oracle(shared: Path) -> Path:
    return shared / "oracles" / "classifiers" / "pointing"


def load(shared: Path, name: str) -> Any:
    return json.loads((pointing_oracle(shared) / name).read_text())


def named_photos(shared: Path, folder: Path) -> Samples:
    """Open the annotations; the reader looks for the photos, and does not open them."""
    for image in load(shared, "instances.json")["images"]:
        (folder / image["file_name"]).touch()
    return open_samples(str(folder), annotations=pointing_oracle(shared) / "instances.json")


def category_names(shared: Path) -> dict[int, str]:
    return {entry["id"]: entry["name"] for entry in load(shared, "instances.json")["categories"]}
