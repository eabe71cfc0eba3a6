"""What the subcommands that only tell something print: layers, models, methods, files."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from .console import notice, table
from .data.store import StoredMaps, read
from .errors import GradlightError, nearest
from .explainers.aggregation import AGGREGATES
from .explainers.extraction import EXTRACTS
from .explainers.methods import METHODS
from .opening import Source, open_model

__all__ = ["inspect_files", "list_layers", "list_methods", "list_models"]


def list_layers(source: Source, stages: bool) -> None:
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
    from .models.zoo import sources

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


def _part(part: Any) -> str:
    return part if isinstance(part, str) else str(part.__name__)


def inspect_files(files: list[Path]) -> int:
    """Print what files of maps hold; give the exit status. One that cannot be read does not stop the others."""
    failed = 0
    for path in files:
        try:
            stored = read(path)
        except GradlightError as error:
            if len(files) == 1:
                raise
            notice(str(error))
            failed += 1
            continue
        _describe(path, stored)
    if failed == len(files):
        return 2
    return 1 if failed else 0


def _describe(path: Path, stored: StoredMaps) -> None:
    print(f"{path}: {len(stored.images)} images, {len(stored.targets)} targets, {len(stored.failures)} failures")
    print(f"made by gradlight {stored.gradlight_version}, {'complete' if stored.complete else 'NOT complete'}")
    print(f"model: {stored.model.get('name', '?')}, weights {stored.weights_sha256[:12]}…")
    print(f"objective: {json.dumps(stored.objective)}; meta step: {json.dumps(stored.meta)}")
    rows = [
        (method, layer, stored.layers[method, layer].depth, _times(maps.shape))
        for (method, layer), maps in stored.maps.items()
    ]
    table(["method", "layer", "depth", "maps×height×width"], rows)
