"""Image classifiers and image processors of transformers, by name, from a folder, or as they are.

transformers is an optional dependency, imported only where it is asked for. Captioners of transformers
(`captioner.hf_captioner`) read their files with what is here.
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
    "classifier_from_module",
    "classifier_from_name",
    "default_processor",
    "is_hub_source",
    "is_multi_label",
    "library",
    "module_metadata",
    "of_transformers",
    "own_preprocess",
    "preprocess_of",
]

SOURCE = "transformers"
"""What stands before the slash of a source."""

_COMMON_STEPS = ("_preprocess", "resize", "center_crop")
_COMMON_BASES = ("TorchvisionBackend", "PilBackend")
_MAX_LISTED = 4
_MAX_REASON = 300

_T = TypeVar("_T")


# --- classifiers ---


def classifier_from_name(
    name: str, *, pretrained: bool, checkpoint: PathLike | None = None, labels: Sequence[str] | None = None
) -> LoadedNetwork:
    """Build an image classifier of transformers, with its own labels and image processor.

    Args:
        name: A repository of the hub, or a folder.
        pretrained: Load its weights, unless there is a checkpoint.
        checkpoint: A file of weights.
        labels: Names for the classes; another number of them makes a new head, as for `zoo.timm_network`.

    Returns:
        The network with its labels and preprocessing.

    Raises:
        GradlightError: If the files cannot be read, are those of another kind of network, or lack the weights of the
            classifier's head.
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
    preprocessing = ImageProcessor(files.read("AutoImageProcessor"))
    return LoadedNetwork(network, list(labels or _labels(config)), preprocessing, SOURCE, files.library.__version__)


def classifier_from_module(network: nn.Module, labels: list[str] | None) -> LoadedNetwork | None:
    """Describe a network of transformers that takes pixels.

    Args:
        network: Any network.
        labels: Names for the classes; None for those of its configuration.

    Returns:
        The network with its labels and the preprocessing of `preprocess_of`; None for a network of another library.
    """
    if not of_transformers(network) or getattr(network, "main_input_name", "") != "pixel_values":
        return None
    preprocessing = preprocess_of(network) or IMAGENET
    return LoadedNetwork(network, labels or _labels(network.config), preprocessing, SOURCE, library().__version__)


def module_metadata(module: nn.Module) -> tuple[Preprocess, list[str]] | None:
    """Find the preprocessing and labels of a network of transformers that is a part of another network.

    Args:
        module: Any module.

    Returns:
        Its preprocessing, and its labels where they are names; None for other modules, and where nothing is known.
    """
    config = getattr(module, "config", None) if of_transformers(module) else None
    takes_pixels = getattr(module, "main_input_name", "") == "pixel_values"
    if config is None or not (takes_pixels or hasattr(config, "vision_config")):
        return None
    preprocessing = preprocess_of(module)
    if preprocessing is None:
        return None
    labels = _labels(config) if takes_pixels and getattr(config, "id2label", None) else []
    return preprocessing, [] if any(label.startswith("LABEL_") for label in labels) else labels


def is_multi_label(network: nn.Module) -> bool:
    """Tell whether a network's configuration says that its classes do not exclude one another.

    Args:
        network: Any network.

    Returns:
        False for networks without such a configuration.
    """
    config = getattr(network, "config", None)
    return getattr(config, "problem_type", None) == "multi_label_classification"


def _labels(config: Any) -> list[str]:
    return [str(config.id2label[index]) for index in sorted(config.id2label)]


# --- the library and its files ---


def library() -> ModuleType:
    """Import transformers.

    Returns:
        The module.

    Raises:
        GradlightError: If it is not installed; the message says how to install it.
    """
    try:
        import transformers
    except ImportError as error:
        raise GradlightError(
            "Networks of transformers need that library, which is not installed. Install it with:"
            ' pip install "gradlight[transformers]"'
        ) from error
    return transformers


def of_transformers(value: Any, kind: str = "PreTrainedModel") -> bool:
    """Tell whether a value is an instance of a class of transformers, without importing the library for it.

    Args:
        value: Any value.
        kind: The name of the class.

    Returns:
        False if transformers has not been imported.
    """
    transformers = sys.modules.get("transformers")
    return transformers is not None and isinstance(value, getattr(transformers, kind))


def is_hub_source(source: Any) -> bool:
    """Tell whether a source is "transformers/NAME_OR_FOLDER", or a network of that library.

    Args:
        source: What a caller gave as a source.

    Returns:
        Whether transformers must open it.

    Example:
        >>> from gradlight.models.huggingface import is_hub_source
        >>> is_hub_source("transformers/google/vit-base-patch16-224"), is_hub_source("timm/resnet50")
        (True, False)
    """
    is_name = isinstance(source, (str, os.PathLike)) and os.fspath(source).startswith(f"{SOURCE}/")
    return is_name or of_transformers(source)


class Files:
    """The files of one network: a folder that save_pretrained wrote, or a repository of the hub.

    Code that comes with a repository is never run. Where the hub does not answer, its files are read from the local
    cache.

    Args:
        name: The folder, or the repository.
        key_file: The file by which the cache is searched.

    Raises:
        GradlightError: If transformers is missing, or the files are neither local nor within reach.
    """

    def __init__(self, name: str, key_file: str = "config.json") -> None:
        self.name, self.source = name, f"{SOURCE}/{name}"
        self.library: Any = library()
        self._options = {"trust_remote_code": False, "local_files_only": self._use_local(key_file)}

    def read(self, kind: str, **options: Any) -> Any:
        """Read one component of the network.

        Args:
            kind: The class of transformers that reads it: "AutoConfig", "AutoTokenizer", …
            **options: Options of its from_pretrained.

        Returns:
            What from_pretrained returns.

        Raises:
            GradlightError: If it cannot be read.
        """
        from_pretrained = getattr(self.library, kind).from_pretrained
        return self._read_quietly(kind, lambda: from_pretrained(self.name, **self._options, **options))

    def network(
        self, kind: str, config: Any, pretrained: bool, checkpoint: PathLike | None, unread: str | None = None
    ) -> Any:
        """Build the network: with its own weights, with those of a checkpoint, or with random ones.

        Args:
            kind: The class of transformers that builds it: "AutoModelForImageClassification", …
            config: Its configuration.
            pretrained: Load its own weights, unless there is a checkpoint.
            checkpoint: A file of weights.
            unread: A component without influence on the output, whose weights may be missing.

        Returns:
            The network.

        Raises:
            GradlightError: If weights are missing or cannot be read.
        """
        network_class = getattr(self.library, kind)
        if not pretrained or checkpoint is not None:
            build = getattr(network_class, "from_config", None) or network_class
            network = self._read_quietly(kind, lambda: build(config))
            if checkpoint is not None:
                load_checkpoint(network, checkpoint)
            return network
        network, report = self.read(kind, config=config, output_loading_info=True)
        missing = [name for name in sorted(report["missing_keys"]) if unread is None or unread not in name]
        if missing:
            more = " …" if missing[_MAX_LISTED:] else ""
            raise GradlightError(
                f"The weights of {self.source} have no {', '.join(missing[:_MAX_LISTED])}{more}: these"
                f" parts of a {type(network).__name__} would be random. Give the name of a network that was trained"
                " for this, checkpoint= with its weights, or pretrained=False."
            )
        return network

    def _use_local(self, key_file: str) -> bool:
        """Tell whether to use only local files."""
        if os.path.isdir(self.name):
            return True
        try:
            return hub_weights(self.source, self.name, key_file) is not None
        except GradlightError as error:
            raise GradlightError(
                f"{self.source}: {self.name!r} is no folder, and the Hugging Face hub, where it could be, does not"
                f" answer. Give the path of a folder that save_pretrained wrote: {SOURCE}/FOLDER."
            ) from error

    def _read_quietly(self, kind: str, read: Callable[[], _T]) -> _T:
        """Read something without the library's own output; any failure becomes a GradlightError."""
        try:
            with _quiet(self.library.logging):
                return read()
        # The library, the hub and broken files fail in every way: OSError, ValueError, KeyError, HTTP errors …
        except Exception as error:
            reason = " ".join(str(error).split())[:_MAX_REASON]
            raise GradlightError(
                f"{self.source} cannot be read as {kind}: {type(error).__name__}: {reason} A source is the name of a"
                f" repository of the hub, or a folder that save_pretrained wrote: {SOURCE}/FOLDER."
            ) from error


@contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Keep the library from drawing progress bars and from logging what is raised here as an error."""
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    try:
        logging.disable_progress_bar()
        logging.set_verbosity_error()
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


# --- image processors ---


class ImageProcessor(MeasuredPreprocessing):
    """Run an image processor of transformers on an upright RGB picture; its pixels are the library's bit for bit.

    The view of its pixels is computed where its steps are the library's common ones (resize, then crop at the centre),
    and measured where it has steps of its own.

    Args:
        processor: The image processor.
    """

    def __init__(self, processor: Any) -> None:
        super().__init__(self.pixels)
        self.processor = processor

    def pixels(self, photo: Image.Image) -> Tensor:
        """Give the pixels [3,H,W] of a picture."""
        pixels: Tensor = self.processor(images=photo, return_tensors="pt")["pixel_values"][0]
        return pixels

    def to_json(self) -> dict[str, Any]:
        """Describe the processor by its own configuration."""
        record: dict[str, Any] = json.loads(self.processor.to_json_string())
        return record

    def _measure(self, photo: tuple[int, int], size: tuple[int, int]) -> Box | str:
        """Compute the box of the common steps; measure it for others."""
        box = _common_box(self.processor, photo) if _has_common_steps(self.processor) else None
        return box or super()._measure(photo, size)


def own_preprocess(function: Callable[[Image.Image], Any]) -> Preprocess:
    """Make a preprocessing with views of a caller's own.

    Args:
        function: An image processor of transformers, or a callable from an RGB Pillow image to a tensor [3,H,W].

    Returns:
        The preprocessing.
    """
    transformers = sys.modules.get("transformers")
    if transformers is not None and isinstance(function, transformers.BaseImageProcessor):
        return ImageProcessor(function)
    return MeasuredPreprocessing(function)


def preprocess_of(network: Any) -> Preprocess | None:
    """Find the preprocessing of a network of transformers: that of the folder or repository it was read from.

    Nothing is downloaded.

    Args:
        network: A network of transformers.

    Returns:
        Its preprocessing; where that is not among the local files, the library's own for networks of this kind, at the
        size of the network's configuration; None if there is none.
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
    processor = default_processor(network.config)
    return None if processor is None else ImageProcessor(processor)


def default_processor(config: Any) -> Any:
    """Make the image processor that transformers has for networks of a configuration.

    Args:
        config: The configuration; the size is its own, or that of its vision encoder.

    Returns:
        The image processor; None if the library has none.
    """
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

    vision_config = getattr(config, "vision_config", None) or getattr(config, "encoder", None) or config
    for candidate in (config, vision_config):
        if type(candidate) in IMAGE_PROCESSOR_MAPPING:
            classes: Any = IMAGE_PROCESSOR_MAPPING[type(candidate)]
            processor_class = classes.get("torchvision") or classes["pil"]
            return processor_class(**_size_options(processor_class, getattr(vision_config, "image_size", None)))
    return None


def _size_options(processor_class: Any, side: Any) -> dict[str, Any]:
    """Give the options that make a class of processors give pixels of a side, or of (height, width)."""
    if side is None:
        return {}
    height, width = side if isinstance(side, (list, tuple)) else (side, side)
    size = {"height": height, "width": width}
    if "shortest_edge" not in (processor_class.size or {}):
        return {"size": size, "crop_size": size}
    return {"size": {"shortest_edge": max(height, width)}, "crop_size": size}


def _has_common_steps(processor: Any) -> bool:
    """Tell whether a processor does nothing of its own, and nothing but resize, crop, rescale and normalise."""
    bases = [base for base in type(processor).__mro__ if base.__name__ in _COMMON_BASES]
    if not bases or getattr(processor, "do_pad", None):
        return False
    return all(getattr(type(processor), step) is getattr(bases[0], step) for step in _COMMON_STEPS)


def _common_box(processor: Any, photo: tuple[int, int]) -> Box | None:
    """Compute where the pixels lie in a photo (width, height); None where the crop is larger than what it cuts."""
    width, height = photo
    rows, columns = _resized(processor, height, width)
    if not rows:
        return None
    x_scale, y_scale = width / columns, height / rows
    if not processor.do_center_crop:
        return 0.0, 0.0, float(width), float(height)
    crop = processor.crop_size
    top, left = (rows - crop.height) // 2, (columns - crop.width) // 2
    if top < 0 or left < 0:
        return None
    return left * x_scale, top * y_scale, (left + crop.width) * x_scale, (top + crop.height) * y_scale


def _resized(processor: Any, height: int, width: int) -> tuple[int, int]:
    """Give the size (height, width) of a photo before the crop; (0, 0) for ways of resizing that are unknown here."""
    size = processor.size
    if not processor.do_resize:
        return height, width
    if size.height and size.width:
        return size.height, size.width
    if not size.shortest_edge or size.longest_edge:
        return 0, 0
    edge = size.shortest_edge
    return (int(edge * height / width), edge) if width <= height else (edge, int(edge * width / height))
