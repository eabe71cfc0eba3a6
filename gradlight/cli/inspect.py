"""Commands that print information: layers, models, methods, the contents of files of maps, and the cache."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ..data.hdf5.reader import MapsFile, open_maps
from ..data.hdf5.verify import verify
from ..errors import GradlightError, nearest
from ..explainers.aggregation import AGGREGATES
from ..explainers.baselines import BASELINES, Baseline
from ..explainers.cache_store import CacheInfo, open_cache
from ..explainers.extraction import EXTRACTS
from ..explainers.methods import METHODS, Method
from .console import print_notice, print_table
from .open_model import ModelOptions, open_model

__all__ = ["inspect_files", "list_layers", "list_methods", "list_models", "manage_cache", "verify_files"]


def list_layers(model_options: ModelOptions, stages_only: bool) -> None:
    """Print a table of a network's spatial layers.

    Args:
        model_options: the options that name the network.
        stages_only: print only the last layer at each resolution.
    """
    model = open_model(model_options)
    stage_names = {layer.name for layer in model.stages()}
    rows = [
        (
            layer.depth,
            layer.name,
            layer.channels,
            _format_size(layer.size),
            "stage" if layer.name in stage_names else "",
        )
        for layer in model.layers()
        if layer.name in stage_names or not stages_only
    ]
    print_table(["depth", "name", "channels", "height×width", ""], rows)


def _format_size(sizes: tuple[int, ...]) -> str:
    """Format sizes as "14×14"."""
    return "×".join(map(str, sizes))


def list_models(pattern: str) -> None:
    """Print the names of the networks that `--model` accepts, one per line.

    Args:
        pattern: a glob that the names must match.

    Raises:
        GradlightError: no name matches.
    """
    from ..models.zoo import sources

    names = sources()
    matches = [name for name in names if fnmatchcase(name, pattern)]
    if not matches:
        raise GradlightError(f"No network matches {pattern!r}.{nearest(pattern.strip('*'), names)}")
    print("\n".join(matches))


def list_methods(long: bool = False) -> None:
    """Print the published methods, the grid, and the baselines.

    Args:
        long: print the formula and the reference of every method and baseline instead.
    """
    if long:
        methods: dict[str, Method | Baseline] = {**METHODS, **BASELINES}
        documented = [(name, method.formula, method.reference) for name, method in methods.items()]
        print_table(["method", "formula", "reference"], documented)
        return
    rows = [(name, _format_step(method.extract), _format_step(method.aggregate)) for name, method in METHODS.items()]
    print_table(["method", "extract", "aggregate"], rows)
    print(f"\nAny pair EXTRACT+AGGREGATE is a method too, such as conv3x3+norm.\nextract:   {', '.join(EXTRACTS)}")
    print(f"aggregate: {', '.join(AGGREGATES)}")
    print(f"\nBaselines, from their own papers: {', '.join(BASELINES)}.")


def _format_step(step: Any) -> str:
    """Format an extract or aggregate step, which is a name or a function."""
    return step if isinstance(step, str) else str(step.__name__)


def inspect_files(files: list[Path]) -> int:
    """Print what files of maps contain; a file that cannot be read does not stop the others.

    Args:
        files: HDF5 files of maps.

    Returns:
        The exit status: 0, or 1 if some of several files cannot be read, or 2 if none of them can.

    Raises:
        GradlightError: the only file cannot be read.
    """
    failed = 0
    for path in files:
        try:
            with open_maps(path) as file:
                _print_contents(path, file)
        except GradlightError as error:
            if len(files) == 1:
                raise
            print_notice(str(error))
            failed += 1
    if failed == len(files):
        return 2
    return 1 if failed else 0


def verify_files(files: list[Path]) -> int:
    """Read files of maps completely and print their problems.

    Args:
        files: HDF5 files of maps.

    Returns:
        The exit status: 0 if all files are sound, 1 if some are not, 2 if none is.
    """
    unsound = 0
    for path in files:
        problems = verify(path)
        unsound += bool(problems)
        print(f"{path}: {f'{len(problems)} problems' if problems else 'sound'}")
        for problem in problems:
            print(f"  {problem}")
    if unsound == len(files):
        return 2
    return 1 if unsound else 0


def manage_cache(action: str, folder: Path | None) -> None:
    """Print the size of the cache, after clearing it if that is the action.

    Args:
        action: "info" or "clear".
        folder: the folder of the cache; None is the default one.

    Raises:
        GradlightError: the action is unknown.
    """
    actions = ("info", "clear")
    if action not in actions:
        raise GradlightError(f"The action of cache must be info or clear, not {action!r}.{nearest(action, actions)}")
    cache = open_cache(folder or True)
    if action == "clear":
        print(f"removed {_format_entries(cache.clear())}")
    info = cache.info()
    print(f"{cache.folder}: {_format_entries(info)}, at most {info.max_bytes / 1e6:,.0f} MB")


def _format_entries(info: CacheInfo) -> str:
    """Format the number and the size of cache entries."""
    return f"{info.entries} {'entry' if info.entries == 1 else 'entries'} of {info.bytes / 1e6:,.1f} MB"


def _print_contents(path: Path, file: MapsFile) -> None:
    """Print what one open file of maps contains."""
    print(f"{path}: {len(file.images)} images, {len(file.targets)} targets, {len(file.failures)} failures")
    state = "complete" if file.complete else "NOT complete"
    print(f"made by gradlight {file.gradlight_version}, {state}{_format_shards(file)}")
    print(f"model: {file.model.get('name', '?')}, weights {file.weights_sha256[:12]}…")
    print(f"objective: {json.dumps(file.objective)}; meta step: {json.dumps(file.meta)}")
    rows = [(*key, row.depth, _format_size(file.shape(key)), str(file.dtype(key))) for key, row in file.layers.items()]
    print_table(["method", "layer", "depth", "maps×height×width", "stored as"], rows)


def _format_shards(file: MapsFile) -> str:
    """Format how many shards an index refers to; "" for a file that contains its maps."""
    return "" if file.shards is None else f", an index over {len(file.shards.files)} shards in {file.shards.folder}"
