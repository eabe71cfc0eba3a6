"""What the subcommands that only tell something print: layers, models, methods, files."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ..data.hdf5.reader import MapsFile, open_maps
from ..data.hdf5.verify import verify
from ..errors import GradlightError, nearest
from ..explainers.aggregation import AGGREGATES
from ..explainers.baselines import BASELINES
from ..explainers.cache_store import CacheInfo, open_cache
from ..explainers.extraction import EXTRACTS
from ..explainers.methods import METHODS
from .console import notice, table
from .open_model import ModelOptions, open_model

__all__ = ["inspect_files", "list_layers", "list_methods", "list_models", "tell_of_cache", "verify_files"]


def list_layers(source: ModelOptions, stages: bool) -> None:
    """Print the table of a network's layers."""
    model = open_model(source)
    chosen = {layer.name for layer in model.stages()}
    rows = [
        (
            layer.depth,
            layer.name,
            layer.channels,
            _times(layer.size),
            "stage" if layer.name in chosen else "",
        )
        for layer in model.layers()
        if layer.name in chosen or not stages
    ]
    table(["depth", "name", "channels", "height×width", ""], rows)


def _times(sizes: tuple[int, ...]) -> str:
    return "×".join(map(str, sizes))


def list_models(pattern: str) -> None:
    """Print the networks that can be named, one a line."""
    from ..models.zoo import sources

    known = sources()
    found = [name for name in known if fnmatchcase(name, pattern)]
    if not found:
        raise GradlightError(f"No network matches {pattern!r}.{nearest(pattern.strip('*'), known)}")
    print("\n".join(found))


def list_methods() -> None:
    """Print the published methods and the grid."""
    rows = [(name, _part(method.extract), _part(method.aggregate)) for name, method in METHODS.items()]
    table(["method", "extract", "aggregate"], rows)
    print(f"\nAny pair EXTRACT+AGGREGATE is a method too, such as conv3x3+norm.\nextract:   {', '.join(EXTRACTS)}")
    print(f"aggregate: {', '.join(AGGREGATES)}")
    print(f"\nBaselines, from their own papers: {', '.join(BASELINES)}.")


def _part(part: Any) -> str:
    return part if isinstance(part, str) else str(part.__name__)


def inspect_files(files: list[Path]) -> int:
    """Print what files of maps hold; give the exit status. One that cannot be read does not stop the others."""
    failed = 0
    for path in files:
        try:
            with open_maps(path) as file:
                _describe(path, file)
        except GradlightError as error:
            if len(files) == 1:
                raise
            notice(str(error))
            failed += 1
    if failed == len(files):
        return 2
    return 1 if failed else 0


def verify_files(files: list[Path]) -> int:
    """Read files of maps whole and print what is wrong; give the exit status."""
    unsound = 0
    for path in files:
        found = verify(path)
        unsound += bool(found)
        print(f"{path}: {f'{len(found)} problems' if found else 'sound'}")
        for problem in found:
            print(f"  {problem}")
    if unsound == len(files):
        return 2
    return 1 if unsound else 0


def tell_of_cache(what: str, folder: Path | None) -> None:
    """Print what the cache holds, or empty it."""
    known = ("info", "clear")
    if what not in known:
        raise GradlightError(f"cache info or clear, not {what!r}.{nearest(what, known)}")
    cache = open_cache(folder or True)
    if what == "clear":
        print(f"removed {_entries(cache.clear())}")
    print(f"{cache.folder}: {_entries(found := cache.info())}, at most {found.max_bytes / 1e6:,.0f} MB")


def _entries(found: CacheInfo) -> str:
    return f"{found.entries} {'entry' if found.entries == 1 else 'entries'} of {found.bytes / 1e6:,.1f} MB"


def _describe(path: Path, file: MapsFile) -> None:
    print(f"{path}: {len(file.images)} images, {len(file.targets)} targets, {len(file.failures)} failures")
    state = "complete" if file.complete else "NOT complete"
    print(f"made by gradlight {file.gradlight_version}, {state}{_of_shards(file)}")
    print(f"model: {file.model.get('name', '?')}, weights {file.weights_sha256[:12]}…")
    print(f"objective: {json.dumps(file.objective)}; meta step: {json.dumps(file.meta)}")
    rows = [(*key, row.depth, _times(file.shape(key)), str(file.dtype(key))) for key, row in file.layers.items()]
    table(["method", "layer", "depth", "maps×height×width", "stored as"], rows)


def _of_shards(file: MapsFile) -> str:
    return "" if file.shards is None else f", an index over {len(file.shards.files)} shards in {file.shards.folder}"
