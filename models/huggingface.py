"""Where transformers is met: its image classifiers by name, from a folder, or as they are, and how its files are read.

The library is an extra of this one and is only imported where it is asked for.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, TypeVar

from torch import nn

from ..errors import GradlightError
from .checkpoints import PathLike, load_checkpoint
from .downloads import hub_weights
from .image_processor import ImageProcessor, default_processor
from .preprocessing import IMAGENET, Preprocess
from .zoo import Found

__all__ = [
    "SOURCE",
    "Files",
    "found_classifier",
    "is_hub_source",
    "is_multi_label",
    "library",
    "named_classifier",
    "of_transformers",
    "preprocess_of",
]

SOURCE = "transformers"
"""What stands before the slash of a source."""

_T = TypeVar("_T")


def library() -> ModuleType:
    """Import transformers; raises GradlightError, which says how to install it, where it is not there."""
    try:
        import transformers
    except ImportError as error:
        raise GradlightError(
            "Networks of transformers need that library, which is not installed. Install it with:"
            ' pip install "gradlight[transformers]"'
        ) from error
    return transformers


def of_transformers(value: Any, kind: str = "PreTrainedModel") -> bool:
    """Tell whether a value is of a class of transformers, without importing it for that."""
    transformers = sys.modules.get("transformers")
    return transformers is not None and isinstance(value, getattr(transformers, kind))


def is_hub_source(source: Any) -> bool:
    """Tell whether a source is "transformers/NAME_OR_FOLDER", or a network of that library."""
    named = isinstance(source, (str, os.PathLike)) and os.fspath(source).startswith(f"{SOURCE}/")
    return named or of_transformers(source)


class Files:
    """The files of one network: a folder that save_pretrained wrote, or a repository of the hub.

    Code that comes with a repository is never run. Where the hub does not answer, its files are taken from the local
    cache. Raises GradlightError where they are neither there.
    """

    def __init__(self, name: str, asked_for: str = "config.json") -> None:
        self.name, self.source = name, f"{SOURCE}/{name}"
        self.library: Any = library()
        self._options = {"trust_remote_code": False, "local_files_only": self._is_local(asked_for)}

    def read(self, kind: str, **options: Any) -> Any:
        """Read a part ("AutoConfig", "AutoTokenizer", …) of the network by its class; GradlightError if it cannot."""
        read = getattr(self.library, kind).from_pretrained
        return self._told(kind, lambda: read(self.name, **self._options, **options))

    def network(
        self, kind: str, config: Any, pretrained: bool, checkpoint: PathLike | None, unread: str | None = None
    ) -> Any:
        """Make a network of a class: with its own weights, with those of a checkpoint, or with random ones.

        unread: a part that does nothing to the answer and may therefore be missing among the weights.
        """
        made = getattr(self.library, kind)
        if not pretrained or checkpoint is not None:
            network = self._told(kind, lambda: (getattr(made, "from_config", None) or made)(config))
            if checkpoint is not None:
                load_checkpoint(network, checkpoint)
            return network
        network, report = self.read(kind, config=config, output_loading_info=True)
        missing = [name for name in sorted(report["missing_keys"]) if unread is None or unread not in name]
        if missing:
            raise GradlightError(
                f"The weights of {self.source} have no {', '.join(missing[:4])}{' …' if missing[4:] else ''}: these"
                f" parts of a {type(network).__name__} would be random. Give the name of a network that was trained"
                " for this, checkpoint= with its weights, or pretrained=False."
            )
        return network

    def _is_local(self, asked_for: str) -> bool:
        """Tell whether only local files are to be used."""
        if os.path.isdir(self.name):
            return True
        try:
            return hub_weights(self.source, self.name, asked_for) is not None
        except GradlightError as error:
            raise GradlightError(
                f"{self.source}: {self.name!r} is no folder, and the Hugging Face hub, where it could be, does not"
                f" answer. Give the path of a folder that save_pretrained wrote: {SOURCE}/FOLDER."
            ) from error

    def _told(self, kind: str, read: Callable[[], _T]) -> _T:
        """Read something quietly; what goes wrong becomes a GradlightError."""
        try:
            with _quiet(self.library.logging):
                return read()
        # The library, the hub and broken files fail in every way: OSError, ValueError, KeyError, HTTP errors …
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise GradlightError(
                f"{self.source} cannot be read as {kind}: {type(error).__name__}: {reason} A source is the name of a"
                f" repository of the hub, or a folder that save_pretrained wrote: {SOURCE}/FOLDER."
            ) from error


@contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Keep the library from drawing bars and from telling of what is told here as an error."""
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    try:
        logging.disable_progress_bar()
        logging.set_verbosity_error()
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def named_classifier(
    name: str, *, pretrained: bool, checkpoint: PathLike | None = None, labels: Sequence[str] | None = None
) -> Found:
    """Build an image classifier of transformers, with its own labels and image processor.

    name: of a repository of the hub, or a folder. The keywords are those of `zoo.timm_network`. Raises GradlightError
    for a network of another kind, and for weights without the head of a classifier.
    """
    files = Files(name)
    config = files.read("AutoConfig")
    pretrained = pretrained and checkpoint is None
    if labels is not None and pretrained and len(labels) != config.num_labels:
        raise GradlightError(
            f"The pretrained weights of {files.source} know {config.num_labels} classes, labels= names {len(labels)}:"
            " such a head would be random. Give checkpoint= with the weights of the new head, or pretrained=False."
        )
    if labels is not None and len(labels) != config.num_labels:
        config.num_labels = len(labels)
    network = files.network("AutoModelForImageClassification", config, pretrained, checkpoint)
    steps = ImageProcessor(files.read("AutoImageProcessor"))
    return Found(network, list(labels or _labels(config)), steps, SOURCE, files.library.__version__)


def found_classifier(network: nn.Module, labels: list[str] | None) -> Found | None:
    """Describe a network of transformers that takes pixels, or None for any other.

    The labels are those of its configuration; for its preprocessing, see `preprocess_of`.
    """
    if not of_transformers(network) or getattr(network, "main_input_name", "") != "pixel_values":
        return None
    steps = preprocess_of(network) or IMAGENET
    return Found(network, labels or _labels(network.config), steps, SOURCE, library().__version__)


def preprocess_of(network: Any) -> Preprocess | None:
    """Find the preprocessing of a network of transformers: that of the folder or repository which it was read from.

    Nothing is downloaded for that: where it is not among the local files, it is the one that the library has for
    networks of this kind, at the size of the network's configuration, and None if there is no such.
    """
    if network.name_or_path:
        try:
            with _quiet(library().logging):
                return ImageProcessor(
                    library().AutoImageProcessor.from_pretrained(
                        network.name_or_path, local_files_only=True, trust_remote_code=False
                    )
                )
        except (OSError, ValueError):
            pass  # it was read from a file of weights alone, or the folder is gone
    found = default_processor(network.config)
    return None if found is None else ImageProcessor(found)


def is_multi_label(network: nn.Module) -> bool:
    """Tell whether a network's configuration says that its classes do not exclude one another."""
    config = getattr(network, "config", None)
    return getattr(config, "problem_type", None) == "multi_label_classification"


def _labels(config: Any) -> list[str]:
    return [str(config.id2label[index]) for index in sorted(config.id2label)]
