"""Classifiers: of timm, torchvision and transformers, of registered sources ("scenes"), or any module with logits."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from ..errors import GradlightError, nearest
from .answer import AnswerForm
from .base import Explainable, ImageLike, Photo, as_list, intact
from .checkpoints import PathLike, load_checkpoint
from .class_objective import ClassLabels, ClassObjective, Output, find_logits, parse
from .huggingface import (
    classifier_from_module,
    classifier_from_name,
    is_hub_source,
    is_multi_label,
    module_metadata,
    own_preprocess,
)
from .images import read_images, read_pixels
from .preprocessing import IMAGENET, Preprocess, Preprocessing
from .preserve import Device, check_explainable, exclusive, preserved, to_device, unwrapped
from .registry import SOURCES, LoadedNetwork
from .zoo import LIBRARIES, sources, timm_metadata

__all__ = ["Classifier", "Prediction", "classifier"]

_BATCH_SIZE = 16


def classifier(
    source: str | nn.Module,
    *,
    pretrained: bool = True,
    checkpoint: PathLike | None = None,
    labels: Sequence[str] | None = None,
    preprocess: Callable[[Image.Image], Any] | None = None,
    device: Device = None,
    output: Output = None,
    multi_label: bool = False,
) -> Classifier:
    """Make a classifier that can be explained.

    A network made by name gets its library's preprocessing and labels, is in eval mode, and goes to a GPU if there is
    one. A module stays as it is: it keeps its device. Its preprocessing and labels are those that a network of timm or
    transformers inside it says of itself; of others, pixels are resized to 256, cropped to 224 and normalised for
    ImageNet, as `repr` says. torch.compile, DataParallel and DDP wrappers are taken off. A network that takes more than
    an image needs a module around it, with `def forward(self, pixels): return self.network(pixels, self.other)`.

    Args:
        source: "timm/NAME", "torchvision/NAME", "transformers/NAME_OR_FOLDER", the bundled "scenes", a name that a
            plug-in registers, or any module whose output holds logits. A module of transformers brings its labels and
            image processor.
        pretrained: Load the published weights of a named network; False leaves them random.
        checkpoint: A file of weights to load instead of a download.
        labels: The names of the classes; for timm and torchvision their number makes the head.
        preprocess: A callable from an RGB Pillow image to a tensor [3,H,W], or an image processor of transformers.
        device: Where to move the network; None as described above.
        output: The key, position or attribute of the logits in the network's output; None to search for them.
        multi_label: Whether the classes do not exclude one another (sigmoid instead of softmax).

    Returns:
        The classifier.

    Raises:
        GradlightError: If the source is unknown, weights cannot be downloaded or do not fit, no gradient can pass
            through the network, or an argument is wrong.

    Example:
        >>> model = gl.classifier("scenes")
        >>> model.labels[:3]
        ['circle', 'square', 'triangle']
        >>> gl.explain(model, "scenes:7", "circle").layers
        ['layer1', 'layer2', 'layer3', 'layer4']
    """
    class_names, likely, assumed = _check_labels(labels), list[str](), False
    record: dict[str, Any] = {"checkpoint": None if checkpoint is None else str(checkpoint), "pretrained": None}
    if isinstance(source, nn.Module):
        network = unwrapped(source)
        if checkpoint is not None:
            load_checkpoint(network, checkpoint)
        check_explainable(network)
        _check_towers(network)
        own = classifier_from_module(network, class_names)
        preprocessing, likely = (None, []) if own else _metadata_inside(network)
        assumed = own is None and preprocessing is None and preprocess is None
        library = type(network).__module__
        loaded = own or LoadedNetwork(network, class_names, preprocessing or IMAGENET, library, "")
        name = type(network).__name__
    else:
        # Weights made under the caller's inference_mode could never be differentiated.
        with torch.inference_mode(False), torch.device("cpu"):
            loaded, name = _load_by_name(source, pretrained, checkpoint, class_names), source
        loaded.network.eval()
        record["pretrained"] = pretrained and checkpoint is None
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device is not None:
        to_device(loaded.network, device)
    return Classifier(
        loaded.network,
        own_preprocess(preprocess) if preprocess is not None else loaded.preprocessing,
        name=name,
        labels=loaded.labels,
        multi_label=multi_label or loaded.multi_label or is_multi_label(loaded.network),
        output=output,
        record={"library": loaded.library, "version": loaded.version, **record},
        likely_labels=likely,
        assumed=assumed,
    )


class Prediction(NamedTuple):
    """One class that a classifier predicts.

    Args:
        label: Its name.
        probability: 0…1.
        index: The number of its logit.
    """

    label: str
    probability: float
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs for a prediction


class Classifier(Explainable):
    """A network whose output is one logit per class.

    Args:
        network: The network; its output holds logits [B,C].
        preprocess: Brings an image to pixels.
        name: What the model is called in files and messages.
        labels: The names of the classes; None for class_0, class_1 … as many as the network has.
        multi_label: Whether the classes do not exclude one another.
        output: Where the logits are in the network's output; None to search for them.
        record: What `describe` says of the network's origin.
        likely_labels: Names that are taken in place of class_0, class_1 … if their number is right.
        assumed: Whether nobody knows if the preprocessing is the network's own; `repr` then says so.

    Example:
        >>> from torch import nn
        >>> from gradlight.models.classifiers import Classifier
        >>> from gradlight.models.preprocessing import IMAGENET
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> Classifier(network, IMAGENET, name="tiny").labels
        ['class_0', 'class_1', 'class_2', 'class_3']
    """

    def __init__(
        self,
        network: nn.Module,
        preprocess: Preprocess,
        *,
        name: str,
        labels: Sequence[str] | None = None,
        multi_label: bool = False,
        output: Output = None,
        record: dict[str, Any] | None = None,
        likely_labels: Sequence[str] = (),
        assumed: bool = False,
    ) -> None:
        self.network = network
        self.preprocess = preprocess
        self.name = name
        self.multi_label = multi_label
        self.output = output
        self._class_labels = ClassLabels(labels, likely_labels)
        self._assumed = assumed
        self._record = dict(record or {})

    @property
    def labels(self) -> list[str]:
        """The names of the classes; the network is run once if their number is unknown."""
        if self._class_labels.names is None:
            with exclusive(self.network), intact(self.network), preserved(self.network), torch.no_grad():
                objective, pixels = self.objective(None), self.cast(torch.zeros(1, 3, *self.size, device="cpu"))
                objective.prepare(pixels)
                objective.outputs(pixels)
        return list(self._class_labels.names or [])

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pixels that the preprocessing makes."""
        return self.preprocess.size

    def read(self, images: Sequence[ImageLike] | Tensor) -> tuple[Tensor, list[Photo]]:
        """Read and preprocess images.

        Args:
            images: Paths, names, Pillow images or HWC uint8 arrays; a floating-point tensor [B,3,H,W] passes through.

        Returns:
            Pixels [B,3,H,W] in the network's dtype and on its device, and a record of each image.

        Raises:
            GradlightError: If something is not an image, or the images differ in size.
        """
        if isinstance(images, Tensor):
            pixels, photos = images, read_pixels(images, self.preprocess)
        else:
            pixels, photos = read_images(images, self.preprocess)
        return self.cast(pixels), photos

    def objective(self, target: Any = None) -> ClassObjective:
        """Make the objective of a target.

        Args:
            target: An index, label, "top", "top5", "min", or lists of these, as `class_objective.parse` reads them.

        Returns:
            The objective: pixels → logits of the target.

        Raises:
            GradlightError: If the target is unknown.

        Example:
            >>> model = gl.classifier("scenes")
            >>> model.objective("star")(model.pixels("scenes:7")).shape
            torch.Size([1, 1])
        """
        return ClassObjective(
            self.network, self._class_labels, parse(target), multi_label=self.multi_label, output=self.output
        )

    def predict(self, images: Any, top: int = 5) -> list[list[Prediction]]:
        """Predict the most probable classes of each image, in eval mode: softmax, or sigmoid if multi-label.

        Args:
            images: One image or a list, as `pixels` takes them.
            top: How many classes per image.

        Returns:
            For each image its predictions, the most probable first.

        Raises:
            GradlightError: If something is not an image, or `top` is no positive whole number.

        Example:
            >>> (first, *_), = gl.classifier("scenes").predict("scenes:7")
            >>> 0 <= first.probability <= 1
            True
        """
        if isinstance(top, bool) or not isinstance(top, int) or top < 1:
            raise GradlightError(f"top={top!r} must be a whole number of classes, 1 or more.")
        image_list = as_list(images)
        predictions: list[list[Prediction]] = []
        objective = self.objective(None)
        with exclusive(self.network), intact(self.network), preserved(self.network), torch.no_grad():
            for start in range(0, max(len(image_list), 1), _BATCH_SIZE):
                pixels = self.read(image_list[start : start + _BATCH_SIZE])[0]
                objective.prepare(pixels)
                logits = objective.outputs(pixels)
                predictions += self._predictions(logits, top)
        return predictions

    def _scored_outputs(self, output: Any) -> Any:
        """Pick the logits; all outputs where there are none, which only the objective refuses."""
        try:
            return find_logits(output, self.output)
        except GradlightError:
            return output

    def describe(self) -> dict[str, Any]:
        """Describe the model in JSON types; num_classes is null as long as the network has not run."""
        return {
            "name": self.name,
            **self._record,
            "num_classes": None if self._class_labels.names is None else len(self._class_labels.names),
            "multi_label": self.multi_label,
            "output": self.output,
            "preprocessing": self.preprocess.to_json(),
            **({"answer": answer} if (answer := self._unusual_answer()) else {}),
        }

    def __repr__(self) -> str:
        """Say in a line what was taken: classes, probabilities, and the pixels that photos become."""
        names, form = self._class_labels.names, self._class_labels.form
        classes = "classes unknown before it has run"
        if names is not None:
            classes = f"{len(names)} classes ({', '.join(names[:2])}{', …' if len(names) > 2 else ''})"
        independent = self.multi_label or self._class_labels.independent
        facts = [classes, f"{'sigmoid (multi-label)' if independent else 'softmax'} of {self._describe_logits()}"]
        if form is not None:
            facts += [*(["every image alone"] * form.mixes_images), *(["answers by chance"] * form.random)]
        how = "ImageNet's preprocessing (assumed)" if self._assumed else type(self.preprocess).__name__
        if isinstance(self.preprocess, Preprocessing) and not self._assumed:
            mean, std = ([round(value, 3) for value in each] for each in (self.preprocess.mean, self.preprocess.std))
            how = f"{self.preprocess.interpolation}, mean {mean}, std {std}"
        return f"Classifier({self.name!r}: {'; '.join(facts)}; pixels {self.size[0]}x{self.size[1]}, {how})"

    def _describe_logits(self) -> str:
        form, where = self._class_labels.form, "" if self.output is None else f" at output={self.output!r}"
        if form is None or form.kind == "logits":
            return f"the logits{where}"
        return f"the {'logits before' if form.seen else 'logarithms of'} the network's own {form.kind}{where}"

    def _unusual_answer(self) -> dict[str, Any]:
        """Describe what the network answers with, if that is something else than logits of each image alone."""
        form = self._class_labels.form
        if form is None or form == AnswerForm():
            return {}
        origin = "its output" if form.kind == "logits" else "before" if form.seen else "logarithms"
        return {"form": form.kind, "logits": origin, "image_by_image": form.mixes_images, "random": form.random}

    def _predictions(self, logits: Tensor, top: int) -> Iterator[list[Prediction]]:
        probabilities = (
            logits.sigmoid() if self.multi_label or self._class_labels.independent else logits.softmax(1)
        ).cpu()
        labels = self.labels
        for order, row in zip(logits.cpu().argsort(dim=1, descending=True, stable=True), probabilities, strict=True):
            yield [Prediction(labels[i], float(row[i]), i) for i in order[:top].tolist()]


def _load_by_name(
    source: Any, pretrained: bool, checkpoint: PathLike | None, labels: Sequence[str] | None
) -> LoadedNetwork:
    """Build a network of a library or of a registered source."""
    if not isinstance(source, str):
        program = isinstance(source, torch.export.ExportedProgram)
        hint = " An exported program has no layers any more; give the network that was exported." if program else ""
        raise GradlightError(
            f"{type(source).__name__} is not a classifier: give {_source_kinds()} or a torch.nn.Module.{hint}"
        )
    library, _, name = source.partition("/")
    if is_hub_source(source) and name:
        return classifier_from_name(name, pretrained=pretrained, checkpoint=checkpoint, labels=labels)
    if library in LIBRARIES and name:
        return LIBRARIES[library](name, pretrained=pretrained, checkpoint=checkpoint, labels=labels)
    open_registered = SOURCES.classifier_opener(source)
    if open_registered is not None:
        return open_registered(pretrained=pretrained, checkpoint=checkpoint, labels=labels)
    every_name = sources()
    same = [full for full in every_name if full.partition("/")[2] == source != ""]
    near = f" Did you mean {' or '.join(map(repr, same))}?" if same else nearest(source, every_name)
    raise GradlightError(
        f"There is no classifier {source!r}.{near} A source must be {_source_kinds()} or a torch.nn.Module; the weights"
        " of your own network go into checkpoint=."
    )


def _metadata_inside(network: nn.Module) -> tuple[Preprocess | None, list[str]]:
    """Find the preprocessing and likely labels of the first network of timm or transformers inside a network."""
    for module in network.modules():
        metadata = timm_metadata(module) or module_metadata(module)
        if metadata is not None:
            return metadata
    return None, []


def _check_towers(network: nn.Module) -> None:
    """Raise GradlightError for a network that compares images with texts, whose output is no classes."""
    takes_text = {"text", "input_ids"} & inspect.signature(network.forward).parameters.keys()
    for image, text in (("get_image_features", "get_text_features"), ("encode_image", "encode_text")):
        if takes_text and callable(getattr(network, image, None)) and callable(getattr(network, text, None)):
            raise GradlightError(
                f"{type(network).__name__} compares images with texts and has no classes by itself. Give a module whose"
                f" forward takes the pixels alone, calls {image} with them, and returns one score for each text: the"
                f" normalised features times those of {text}, computed before."
            )


def _source_kinds() -> str:
    """List what a source can be, for errors."""
    named = ["timm/NAME", "torchvision/NAME", "transformers/NAME", *SOURCES.classifier_names()]
    return ", ".join(f'"{name}"' for name in named)


def _check_labels(labels: Any) -> list[str] | None:
    """Give the caller's labels as a list; raise GradlightError if they are none."""
    if labels is None:
        return None
    if isinstance(labels, (str, bytes)) or not isinstance(labels, Sequence):
        raise GradlightError(f"labels= must be a list of names, one for each class; it is {type(labels).__name__}.")
    wrong = [label for label in labels if not isinstance(label, str)]
    if wrong or not labels:
        problem = f"it holds {wrong[0]!r}" if wrong else "it is empty"
        raise GradlightError(f"labels= must be a list of names, one for each class; {problem}.")
    return list(labels)
