"""Reading weights from a file, safely, and loading all of them or none."""

from __future__ import annotations

import os
import pickle
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from ..errors import GradlightError, nearest
from ..files import format_path, open_regular

__all__ = ["PathLike", "load_checkpoint", "open_checkpoint", "read_state"]

PathLike = str | os.PathLike[str]

_NESTS = ("state_dict", "model", "model_state_dict", "state_dict_ema")
_PREFIXES = ("module.", "_orig_mod.", "model.")
_LISTED = 8
_WHOLE = "Get a whole copy of it"


def load_checkpoint(network: nn.Module, path: PathLike, *, ignore: Sequence[str] = ()) -> None:
    """Load a checkpoint into a network, strictly: every weight fits, or GradlightError is raised and nothing changes.

    ignore: beginnings of keys that the file may hold beyond the network's (auxiliary classifiers).
    """
    own = {name: value for name, value in network.state_dict().items() if isinstance(value, Tensor)}
    state = _matching(read_state(path), own)
    state = {name: value for name, value in state.items() if name in own or not name.startswith(tuple(ignore))}
    # Batch normalisation did not count its batches before PyTorch 0.4.1, and nothing depends on the count.
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    shaped = [name for name in state if name in own and state[name].shape != own[name].shape]
    if missing or unexpected or shaped:
        raise GradlightError(_report(path, own, state, (missing, unexpected, shaped)))
    network.load_state_dict(state, strict=False)


def read_state(path: PathLike) -> dict[str, Tensor]:
    """Read a state dict from a safetensors file or a PyTorch checkpoint, without executing anything of it.

    A state dict is also found under "state_dict", "model", "model_state_dict" or "state_dict_ema", in this order.
    Raises GradlightError for every other file, and names it.
    """
    content = open_checkpoint(path)
    while isinstance(content, Mapping):
        inner = next((content[nest] for nest in _NESTS if isinstance(content.get(nest), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        found = f"keys {', '.join(map(repr, list(content)[:_LISTED]))}" if isinstance(content, Mapping) else "no dict"
        raise GradlightError(
            f"{format_path(path)}: holds no state dict ({type(content).__name__}: {found}). Save one with"
            " torch.save(network.state_dict(), path)."
        )
    return {str(name): value.detach() for name, value in content.items() if isinstance(value, Tensor)}


def open_checkpoint(path: PathLike) -> Any:
    """Open a safetensors file or a PyTorch file of tensors and plain data; raises GradlightError for any other."""
    start = _beginning(path)
    if re.match(rb"\s*<(!doctype|html|\?xml)", start, re.IGNORECASE):
        raise GradlightError(
            f"{format_path(path)}: a web page, perhaps an error page saved in its place. Download it again."
        )
    if start.startswith(b"version https://git-lfs"):
        raise GradlightError(f"{format_path(path)}: a Git LFS pointer, not the weights. Run `git lfs pull`.")
    if not start:
        raise GradlightError(f"{format_path(path)}: an empty file (0 bytes). {_WHOLE}.")
    # A safetensors file begins with the length of its JSON header, whatever its name is.
    if os.fspath(path).endswith(".safetensors") or start[8:9] == b"{":
        try:
            return safetensors.torch.load_file(path)
        except (safetensors.SafetensorError, OSError, ValueError) as error:
            raise GradlightError(
                f"{format_path(path)}: a damaged or truncated safetensors file ({error}). {_WHOLE}."
            ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    # Broken bytes make the unpickler fail in any way: KeyError, EOFError, OSError, struct.error …
    except Exception as error:
        raise GradlightError(_refusal(path, start, error)) from error


def _beginning(path: PathLike) -> bytes:
    try:
        with open_regular(path) as stream:
            return stream.read(512)
    except GradlightError as error:
        folder = Path(os.fspath(path)).parent
        near = nearest(Path(path).name, os.listdir(folder)) if folder.is_dir() and not Path(path).exists() else ""
        raise GradlightError(f"{error}{near}") from error


def _refusal(path: PathLike, start: bytes, error: Exception) -> str:
    words = str(error)
    if "TorchScript" in words:
        return (
            f"{format_path(path)}: a TorchScript program, not a state dict, and it was not run. Save one with"
            " torch.save(network.state_dict(), path)."
        )
    whole = start.startswith((b"PK", b"\x80")) and isinstance(error, pickle.UnpicklingError)
    if whole and re.search(r"Unsupported (global|class|operand)|GLOBAL", words):
        thing = re.search(r"(?:GLOBAL|global:? (?:GLOBAL )?)\s*([\w.]+)", words)
        return (
            f"{format_path(path)}: the file holds more than tensors{f' ({thing[1]})' if thing else ''}, and was not opened,"
            " because opening such a file can run programs. If you trust its source, keep only the weights:"
            ' torch.save(torch.load(path, weights_only=False)["state_dict"], new_path).'
        )
    detail = words.splitlines()[0] if words and len(words) < 200 else type(error).__name__
    return f"{format_path(path)}: not a checkpoint, or damaged or truncated ({detail}). {_WHOLE}."


def _matching(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take away the prefixes of wrappers (DataParallel, compile, Lightning) as long as more keys match then."""
    while True:
        known = sum(name in own for name in state)
        shorter = [{name.removeprefix(prefix): value for name, value in state.items()} for prefix in _PREFIXES]
        best = max(shorter, key=lambda candidate: sum(name in own for name in candidate))
        nested = next((s for s, p in zip(shorter, _PREFIXES, strict=True) if all(n.startswith(p) for n in state)), None)
        if sum(name in own for name in best) > known:
            state = best
        elif known == 0 and nested:
            state = nested
        else:
            return state


def _report(
    path: PathLike,
    own: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    problems: tuple[list[str], list[str], list[str]],
) -> str:
    missing, unexpected, shaped = problems
    parts = [f"{format_path(path)}: does not fit this network, and nothing was loaded."]
    parts += _listed("missing from the file", [f"{n} {list(own[n].shape)}" for n in missing])
    parts += _listed("not in the network", [f"{n} {list(state[n].shape)}" for n in unexpected])
    both = [f"{n} {list(state[n].shape)} in the file, {list(own[n].shape)} in the network" for n in shaped]
    parts += _listed("of another shape", both)
    classes = {state[n].shape[0] if state[n].ndim else 0 for n in shaped}
    head = all(state[n].shape[1:] == own[n].shape[1:] for n in shaped)
    if shaped and not missing and not unexpected and head and len(classes) == 1:
        parts.append(f"Only the head differs: give labels= the names of the file's {classes.pop()} classes.")
    else:
        parts.append("Check that the checkpoint was made with this architecture.")
    return " ".join(parts)


def _listed(what: str, entries: Sequence[str]) -> list[str]:
    if not entries:
        return []
    more = f", and {len(entries) - _LISTED} more" if len(entries) > _LISTED else ""
    return [f"{len(entries)} {what}: {', '.join(entries[:_LISTED])}{more}."]
