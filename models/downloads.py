"""Weights that the libraries download: failing soon and in plain words where there is no network."""

from __future__ import annotations

import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..errors import GradlightError

__all__ = ["hub_weights", "url_weights", "with_weights"]

_PATIENCE = 10


def with_weights(source: str, make: Callable[[], nn.Module]) -> nn.Module:
    """Let a library build a network with its weights; what goes wrong becomes a GradlightError with the ways out."""
    try:
        return make()
    except GradlightError:
        raise
    # The libraries, their hubs and broken files fail in every way: OSError, HTTP errors, RuntimeError, EOFError …
    except Exception as error:
        raise GradlightError(_ways_out(source, f"{type(error).__name__}: {error}")) from error


def url_weights(source: str, url: str) -> None:
    """Make sure that torch.hub has the file of this address already, or can get it."""
    file = os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(url))
    if not os.path.exists(file):
        reason = _unreachable(url)
        if reason:
            raise GradlightError(_ways_out(source, reason))


def hub_weights(source: str, repository: str | None, filename: str | None) -> dict[str, Any] | None:
    """Find out how timm gets a repository of the Hugging Face hub.

    Returns what to lay over timm's configuration: nothing where the hub answers, else the file in the local cache.
    By itself the hub's client would ask again for 50 seconds, even where the file is there.
    """
    if not repository:
        return None
    from huggingface_hub import constants, try_to_load_from_cache

    reason = _unreachable(constants.ENDPOINT)
    if not reason:
        return None
    for name in (filename,) if filename else ("model.safetensors", "pytorch_model.bin"):
        cached = try_to_load_from_cache(repository, name)
        if isinstance(cached, str):
            return {"file": cached, "custom_load": False}
    raise GradlightError(_ways_out(source, reason))


def _unreachable(url: str) -> str:
    """Say why a server does not answer, or "" where it does; proxies are those of the environment."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_PATIENCE).close()
    except urllib.error.HTTPError:
        return ""  # It answers; whether it has the file is the library's to find out.
    except OSError as error:
        return f"{urllib.parse.urlsplit(url).netloc} cannot be reached ({getattr(error, 'reason', error)})"
    return ""


def _ways_out(source: str, reason: str) -> str:
    return (
        f"The weights of {source} could not be downloaded or read: {reason}. Without them: checkpoint=PATH reads a file"
        ' that you have, pretrained=False takes random weights, and the source "scenes" comes with its own.'
    )
