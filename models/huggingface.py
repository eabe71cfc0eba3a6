"""Where transformers is met: its image classifiers by name, from a folder, or as they are, and how its files are read.

The library is an extra of this one and is only imported where it is asked for.

Image processors of transformers as they are: their pixels bit for bit, and where these lie in the photo.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, TypeVar

from PIL import Image
from torch import Tensor, nn

from ..errors import GradlightError
from .checkpoints import PathLike, load_checkpoint
from .measured_preprocessing import Box, MeasuredPreprocessing
from .preprocessing import IMAGENET, Preprocess
from .registry import LoadedNetwork
from .zoo import hub_weights

__all__ = [
    "SOURCE",
    "Files",
    "ImageProcessor",
    "default_processor",
    "found_classifier",
    "is_hub_source",
    "is_multi_label",
    "library",
    "named_classifier",
    "of_transformers",
    "own_preprocess",
    "preprocess_of",
]

_STEPS = ("_preprocess", "resize", "center_crop")
_BASES = ("TorchvisionBackend", "PilBackend")


class ImageProcessor(MeasuredPreprocessing):
    """Run an image processor of transformers on an upright RGB picture.

    The view of its pixels is computed where its steps are the library's common ones (resize, then crop at the centre),
    and measured where it has steps of its own.
    """

    def __init__(self, processor: Any) -> None:
        super().__init__(self.pixels)
        self.processor = processor

    def pixels(self, photo: Image.Image) -> Tensor:
        """Give the pixels [3,H,W] of a picture."""
        found: Tensor = self.processor(images=photo, return_tensors="pt")["pixel_values"][0]
        return found

    def to_json(self) -> dict[str, Any]:
        """Describe the processor by its own configuration."""
        described: dict[str, Any] = json.loads(self.processor.to_json_string())
        return described

    def _measure(self, photo: tuple[int, int], size: tuple[int, int]) -> Box | str:
        """Compute the box of the common steps; measure it for others."""
        box = _common_box(self.processor, photo) if _has_common_steps(self.processor) else None
        return box or super()._measure(photo, size)


def own_preprocess(given: Callable[[Image.Image], Any]) -> Preprocess:
    """Make the preprocessing of what a caller gives: an image processor of transformers, or any other callable."""
    transformers = sys.modules.get("transformers")
    if transformers is not None and isinstance(given, transformers.BaseImageProcessor):
        return ImageProcessor(given)
    return MeasuredPreprocessing(given)


def default_processor(config: Any) -> Any:
    """Make the image processor that transformers has for networks of a configuration, or None if it has none.

    Its size is that of the configuration, which holds it itself or in its vision part.
    """
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

    eye = getattr(config, "vision_config", None) or getattr(config, "encoder", None) or config
    for known in (config, eye):
        if type(known) in IMAGE_PROCESSOR_MAPPING:
            found: Any = IMAGE_PROCESSOR_MAPPING[type(known)]
            kind = found.get("torchvision") or found["pil"]
            return kind(**_sizes(kind, getattr(eye, "image_size", None)))
    return None


def _sizes(kind: Any, side: Any) -> dict[str, Any]:
    """Give the options that make a kind of processor give pixels of a side, or of (height, width)."""
    if side is None:
        return {}
    height, width = side if isinstance(side, (list, tuple)) else (side, side)
    whole = {"height": height, "width": width}
    if "shortest_edge" not in (kind.size or {}):
        return {"size": whole, "crop_size": whole}
    return {"size": {"shortest_edge": max(height, width)}, "crop_size": whole}


def _has_common_steps(processor: Any) -> bool:
    """Tell whether a processor does nothing of its own, and nothing but resize, crop, rescale and normalise."""
    bases = [base for base in type(processor).__mro__ if base.__name__ in _BASES]
    if not bases or getattr(processor, "do_pad", None):
        return False
    return all(getattr(type(processor), step) is getattr(bases[0], step) for step in _STEPS)


def _common_box(processor: Any, photo: tuple[int, int]) -> Box | None:
    """Compute where the pixels lie in a photo (width, height); None where the crop is larger than what it cuts."""
    width, height = photo
    rows, columns = _resized(processor, height, width)
    if not rows:
        return None
    across, down = width / columns, height / rows
    if not processor.do_center_crop:
        return 0.0, 0.0, float(width), float(height)
    crop = processor.crop_size
    top, left = (rows - crop.height) // 2, (columns - crop.width) // 2
    if top < 0 or left < 0:
        return None
    return left * across, top * down, (left + crop.width) * across, (top + crop.height) * down


def _resized(processor: Any, height: int, width: int) -> tuple[int, int]:
    """Give the size (height, width) of a photo before the crop, (0, 0) for ways of resizing that are not known here."""
    size = processor.size
    if not processor.do_resize:
        return height, width
    if size.height and size.width:
        return size.height, size.width
    if not size.shortest_edge or size.longest_edge:
        return 0, 0
    edge = size.shortest_edge
    return (int(edge * height / width), edge) if width <= height else (edge, int(edge * width / height))


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
) -> LoadedNetwork:
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
    return LoadedNetwork(network, list(labels or _labels(config)), steps, SOURCE, files.library.__version__)


def found_classifier(network: nn.Module, labels: list[str] | None) -> LoadedNetwork | None:
    """Describe a network of transformers that takes pixels, or None for any other.

    The labels are those of its configuration; for its preprocessing, see `preprocess_of`.
    """
    if not of_transformers(network) or getattr(network, "main_input_name", "") != "pixel_values":
        return None
    steps = preprocess_of(network) or IMAGENET
    return LoadedNetwork(network, labels or _labels(network.config), steps, SOURCE, library().__version__)


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
