"""Read weights from files safely, and load all of them or none."""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import pickle
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from ..errors import GradlightError, GradlightWarning, nearest
from ..files import format_path, open_regular

__all__ = ["PathLike", "load_checkpoint", "open_checkpoint", "read_state"]

PathLike = str | os.PathLike[str]

_STATE_KEYS = ("state_dict", "model", "model_state_dict", "state_dict_ema")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.")
_OF_TRAINING = ("criterion.", "loss.", "loss_fn.", "metrics.")
_MAX_LISTED = 8
_GET_COMPLETE = "Get a whole copy of it"


def load_checkpoint(network: nn.Module, path: PathLike, *, ignore: Sequence[str] = ()) -> None:
    """Load a checkpoint into a network, strictly: every weight fits, or nothing changes.

    Args:
        network: The network.
        path: A safetensors file or a PyTorch checkpoint.
        ignore: Prefixes of keys that the file may hold beyond the network's (auxiliary classifiers).

    Raises:
        GradlightError: If the file cannot be read, or a weight is missing, superfluous or of another shape.

    Example:
        >>> import safetensors.torch, torch
        >>> from gradlight.models.checkpoints import load_checkpoint
        >>> linear = torch.nn.Linear(2, 1)
        >>> safetensors.torch.save_file({"weight": torch.ones(1, 2), "bias": torch.zeros(1)}, "w.safetensors")
        >>> load_checkpoint(linear, "w.safetensors")
        >>> linear.weight.tolist()
        [[1.0, 1.0]]
    """
    own = {name: value for name, value in network.state_dict().items() if isinstance(value, Tensor)}
    content = read_state(path)
    state = _without_prefixes(content, own)
    state = {name: value for name, value in state.items() if name in own or not name.startswith(tuple(ignore))}
    # Batch normalisation did not count its batches before PyTorch 0.4.1, and nothing depends on the count.
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    misshapen = [name for name in state if name in own and state[name].shape != own[name].shape]
    unrelated = [] if missing or misshapen else _not_of_the_network(unexpected, content, own)
    if unrelated and len(unrelated) == len(unexpected):
        first = ", ".join(map(repr, unrelated[:_MAX_LISTED]))
        text = f"{format_path(path)}: not loaded, because it is no part of the network: {first}."
        warnings.warn(text, GradlightWarning, stacklevel=3)
        state, unexpected = {name: value for name, value in state.items() if name in own}, []
    if missing or unexpected or misshapen:
        raise GradlightError(_format_mismatch(path, own, state, (missing, unexpected, misshapen)))
    network.load_state_dict(state, strict=False)


def read_state(path: PathLike) -> dict[str, Tensor]:
    """Read a state dict from a safetensors file or a PyTorch checkpoint, without executing anything in it.

    A state dict is also found under "state_dict", "model", "model_state_dict" or "state_dict_ema", in this order.

    Args:
        path: The file.

    Returns:
        Key → tensor.

    Raises:
        GradlightError: If the file is of another kind, damaged, or holds no state dict.
    """
    content = open_checkpoint(path)
    while isinstance(content, Mapping):
        inner = next((content[key] for key in _STATE_KEYS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        is_mapping = isinstance(content, Mapping)
        keys = f"keys {', '.join(map(repr, list(content)[:_MAX_LISTED]))}" if is_mapping else "no dict"
        raise GradlightError(
            f"{format_path(path)}: holds no state dict ({type(content).__name__}: {keys}). Save one with"
            " torch.save(network.state_dict(), path)."
        )
    return {str(name): value.detach() for name, value in content.items() if isinstance(value, Tensor)}


def open_checkpoint(path: PathLike) -> Any:
    """Open a safetensors file, or a PyTorch file of tensors and plain data.

    Args:
        path: The file.

    Returns:
        What the file holds.

    Raises:
        GradlightError: If the file is of another kind or damaged.
    """
    start = _first_bytes(path)
    if re.match(rb"\s*<(!doctype|html|\?xml)", start, re.IGNORECASE):
        raise GradlightError(
            f"{format_path(path)}: a web page, perhaps an error page saved in its place. Download it again."
        )
    if start.startswith(b"version https://git-lfs"):
        raise GradlightError(f"{format_path(path)}: a Git LFS pointer, not the weights. Run `git lfs pull`.")
    if not start:
        raise GradlightError(f"{format_path(path)}: an empty file (0 bytes). {_GET_COMPLETE}.")
    # A safetensors file begins with the length of its JSON header, whatever its name is.
    if os.fspath(path).endswith(".safetensors") or start[8:9] == b"{":
        try:
            return safetensors.torch.load_file(path)
        except (safetensors.SafetensorError, OSError, ValueError) as error:
            raise GradlightError(
                f"{format_path(path)}: a damaged or truncated safetensors file ({error}). {_GET_COMPLETE}."
            ) from error
    try:
        with warnings.catch_warnings(), _plain_types():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    # Broken bytes make the unpickler fail in any way: KeyError, EOFError, OSError, struct.error …
    except Exception as error:
        raise GradlightError(_format_refusal(path, start, error)) from error


def _plain_types() -> contextlib.AbstractContextManager[Any]:
    """Let torch.load make, besides tensors, the plain records that training loops store: none of them runs anything."""
    allow = getattr(torch.serialization, "safe_globals", None)  # torch 2.5 and later
    if allow is None:
        return contextlib.nullcontext()
    # NumPy's own functions by which a scalar is stored; their module is named otherwise before NumPy 2.
    scalar = np.float64(0).__reduce__()[0]
    dtypes = {type(np.dtype(kind)) for kind in "?bBhHiIlLqQefdFD"}
    records = [argparse.Namespace, pathlib.PosixPath, pathlib.PurePosixPath]
    manager: contextlib.AbstractContextManager[Any] = allow([scalar, np.dtype, *dtypes, *records])
    return manager


def _first_bytes(path: PathLike) -> bytes:
    try:
        with open_regular(path) as stream:
            return stream.read(512)
    except GradlightError as error:
        folder = Path(os.fspath(path)).parent
        near = nearest(Path(path).name, os.listdir(folder)) if folder.is_dir() and not Path(path).exists() else ""
        raise GradlightError(f"{error}{near}") from error


def _format_refusal(path: PathLike, start: bytes, error: Exception) -> str:
    """Say why torch.load refused a file: TorchScript, other objects than tensors, or damage."""
    message = str(error)
    if "TorchScript" in message:
        return (
            f"{format_path(path)}: a TorchScript program, not a state dict, and it was not run. Save one with"
            " torch.save(network.state_dict(), path)."
        )
    is_pickle = start.startswith((b"PK", b"\x80")) and isinstance(error, pickle.UnpicklingError)
    if is_pickle and re.search(r"Unsupported (global|class|operand)|GLOBAL", message):
        name = re.search(r"(?:GLOBAL|global:? (?:GLOBAL )?)\s*([\w.]+)", message)
        return (
            f"{format_path(path)}: the file holds more than tensors{f' ({name[1]})' if name else ''}, and was not"
            " opened, because opening such a file can run programs. If you trust its source, keep only the weights:"
            ' torch.save(torch.load(path, weights_only=False)["state_dict"], new_path).'
        )
    detail = message.splitlines()[0] if message and len(message) < 200 else type(error).__name__
    return f"{format_path(path)}: not a checkpoint, or damaged or truncated ({detail}). {_GET_COMPLETE}."


def _without_prefixes(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefixes of wrappers (DataParallel, compile, Lightning) as long as more keys match then."""
    while True:
        matches = sum(name in own for name in state)
        shorter = [{name.removeprefix(prefix): value for name, value in state.items()} for prefix in _PREFIXES]
        best = max(shorter, key=lambda candidate: sum(name in own for name in candidate))
        nested = next((s for s, p in zip(shorter, _PREFIXES, strict=True) if all(n.startswith(p) for n in state)), None)
        if sum(name in own for name in best) > matches:
            state = best
        elif matches == 0 and nested:
            state = nested
        else:
            return state


def _not_of_the_network(
    unexpected: Sequence[str], content: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> list[str]:
    """List the keys that lie beside a network in what was trained, as a loss with weights of its own.

    Either they are named so, or they lack the prefix that every weight of the network has in the file.
    """
    prefixed = not any(name in content for name in own)
    return [name for name in unexpected if name.startswith(_OF_TRAINING) or (prefixed and name in content)]


def _format_mismatch(
    path: PathLike,
    own: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    problems: tuple[list[str], list[str], list[str]],
) -> str:
    """Say which weights of a file do not fit a network, and what to do."""
    missing, unexpected, misshapen = problems
    sentences = [f"{format_path(path)}: does not fit this network, and nothing was loaded."]
    sentences += _format_list("missing from the file", [f"{n} {list(own[n].shape)}" for n in missing])
    sentences += _format_list("not in the network", [f"{n} {list(state[n].shape)}" for n in unexpected])
    both = [f"{n} {list(state[n].shape)} in the file, {list(own[n].shape)} in the network" for n in misshapen]
    sentences += _format_list("of another shape", both)
    class_counts = {state[n].shape[0] if state[n].ndim else 0 for n in misshapen}
    is_head = all(state[n].shape[1:] == own[n].shape[1:] for n in misshapen)
    if misshapen and not missing and not unexpected and is_head and len(class_counts) == 1:
        count = class_counts.pop()
        sentences.append(f"Only the head differs: give labels= the names of the file's {count} classes.")
    else:
        sentences.append("Check that the checkpoint was made with this architecture.")
    return " ".join(sentences)


def _format_list(what: str, entries: Sequence[str]) -> list[str]:
    if not entries:
        return []
    more = f", and {len(entries) - _MAX_LISTED} more" if len(entries) > _MAX_LISTED else ""
    return [f"{len(entries)} {what}: {', '.join(entries[:_MAX_LISTED])}{more}."]
