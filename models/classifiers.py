"""Classifiers: of timm, of torchvision, the bundled one of the scenes, or any module that ends in logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from ..errors import GradlightError, nearest
from .base import Explainable, ImageLike, Photo, as_list
from .checkpoints import PathLike, load_checkpoint
from .class_objective import ClassLabels, ClassObjective, Output, parse
from .huggingface import found_classifier, is_hub_source, is_multi_label, named_classifier, own_preprocess
from .images import read_images, read_pixels
from .preprocessing import IMAGENET, Preprocess, Preprocessing
from .preserve import Device, check_explainable, preserved, to_device, unwrapped
from .zoo import LIBRARIES, LoadedNetwork, sources

__all__ = ["Classifier", "Prediction", "classifier"]

_AT_ONCE = 16


class Prediction(NamedTuple):
    """What a classifier says about an image: a class, how probable it finds it (0…1), and its index."""

    label: str
    probability: float
    index: int  # type: ignore[assignment]  # the field's own word, and nobody looks for a value in a prediction


class Classifier(Explainable):
    """A network whose answer is one logit for each class.

    record: what `describe` says of its origin. labels may be None: class_0, class_1 … as many as the network has.
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
    ) -> None:
        self.network = network
        self.preprocess = preprocess
        self.name = name
        self.multi_label = multi_label
        self.output = output
        self._names = ClassLabels(labels)
        self._record = dict(record or {})

    @property
    def labels(self) -> list[str]:
        """The names of the classes; the network is run once where nobody has said how many there are."""
        if self._names.names is None:
            with preserved(self.network), torch.no_grad():
                self.objective(None).outputs(self.cast(torch.zeros(1, 3, *self.size)))
        return list(self._names.names or [])

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pixels that the preprocessing makes."""
        return self.preprocess.size

    def read(self, images: Sequence[ImageLike] | Tensor) -> tuple[Tensor, list[Photo]]:
        """Bring images to pixels [B,3,H,W] in the network's dtype and on its device, with a record of each photo.

        A floating-point tensor [B,3,H,W] passes through. Raises GradlightError for what is not an image.
        """
        if isinstance(images, Tensor):
            pixels, photos = images, read_pixels(images, self.preprocess)
        else:
            pixels, photos = read_images(images, self.preprocess)
        return self.cast(pixels), photos

    def objective(self, target: Any = None) -> ClassObjective:
        """Make the objective of a target: an index, label, "top", "top5", "min", or lists of them (`targets.parse`)."""
        return ClassObjective(
            self.network, self._names, parse(target), multi_label=self.multi_label, output=self.output
        )

    def predict(self, images: Any, top: int = 5) -> list[list[Prediction]]:
        """Predict the `top` most probable classes of each image, in eval mode: softmax, or sigmoid if multi-label."""
        if isinstance(top, bool) or not isinstance(top, int) or top < 1:
            raise GradlightError(f"top={top!r} must be a whole number of classes, 1 or more.")
        found = as_list(images)
        predictions: list[list[Prediction]] = []
        objective = self.objective(None)
        with preserved(self.network), torch.no_grad():
            for start in range(0, max(len(found), 1), _AT_ONCE):
                logits = objective.outputs(self.read(found[start : start + _AT_ONCE])[0])
                predictions += self._predictions(logits, top)
        return predictions

    def describe(self) -> dict[str, Any]:
        """Describe the model in JSON types; num_classes is null as long as the network has not run."""
        return {
            "name": self.name,
            **self._record,
            "num_classes": None if self._names.names is None else len(self._names.names),
            "multi_label": self.multi_label,
            "output": self.output,
            "preprocessing": self.preprocess.to_json(),
        }

    def _predictions(self, logits: Tensor, top: int) -> Iterator[list[Prediction]]:
        probabilities = (logits.sigmoid() if self.multi_label else logits.softmax(1)).cpu()
        labels = self.labels
        for order, row in zip(logits.cpu().argsort(dim=1, descending=True, stable=True), probabilities, strict=True):
            yield [Prediction(labels[i], float(row[i]), i) for i in order[:top].tolist()]


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
    """Make a classifier of "timm/NAME", "torchvision/NAME", the bundled "scenes", or any module that ends in logits.

    "transformers/NAME_OR_FOLDER", and a module of that library, bring their labels and image processor along.

    A named network gets its library's preprocessing and labels, eval mode, and a GPU if there is one. A module stays
    as it is: it is not moved unless a device is given, and its pixels are resized to 256, cropped to 224 and
    normalised for ImageNet unless there is a `preprocess`: a callable from an RGB Pillow image to a tensor [3,H,W].
    torch.compile, DataParallel and DDP are taken off it. One that takes more than an image needs a module around it,
    with `def forward(self, pixels): return self.network(pixels, self.other)`.
    checkpoint: a file of weights, instead of a download. labels: the classes' names; for timm and torchvision their
    number makes the head. output: the key, position or attribute of the logits in the network's answer. multi_label:
    the classes do not exclude one another.
    """
    named = _checked_labels(labels)
    record: dict[str, Any] = {"checkpoint": None if checkpoint is None else str(checkpoint), "pretrained": None}
    if isinstance(source, nn.Module):
        source = unwrapped(source)
        if checkpoint is not None:
            load_checkpoint(source, checkpoint)
        check_explainable(source)
        found = found_classifier(source, named) or LoadedNetwork(source, named, IMAGENET, type(source).__module__, "")
        name = type(source).__name__
    else:
        # Weights made under the caller's inference_mode could never be differentiated.
        with torch.inference_mode(False):
            found, name = _named(source, pretrained, checkpoint, named), source
        found.network.eval()
        record["pretrained"] = pretrained and checkpoint is None
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device is not None:
        to_device(found.network, device)
    return Classifier(
        found.network,
        own_preprocess(preprocess) if preprocess is not None else found.preprocessing,
        name=name,
        labels=found.labels,
        multi_label=multi_label or source == "scenes" or is_multi_label(found.network),
        output=output,
        record={"library": found.library, "version": found.version, **record},
    )


def _named(source: Any, pretrained: bool, checkpoint: PathLike | None, labels: Sequence[str] | None) -> LoadedNetwork:
    if not isinstance(source, str):
        program = isinstance(source, torch.export.ExportedProgram)
        hint = " An exported program has no layers any more; give the network that was exported." if program else ""
        raise GradlightError(
            f'{type(source).__name__} is not a classifier: give "timm/NAME", "torchvision/NAME", "scenes" or a'
            f" torch.nn.Module.{hint}"
        )
    if source == "scenes":
        return _scenes(pretrained, checkpoint, labels)
    library, _, name = source.partition("/")
    if is_hub_source(source) and name:
        return named_classifier(name, pretrained=pretrained, checkpoint=checkpoint, labels=labels)
    if library in LIBRARIES and name:
        return LIBRARIES[library](name, pretrained=pretrained, checkpoint=checkpoint, labels=labels)
    everything = sources()
    same = [full for full in everything if full.partition("/")[2] == source != ""]
    near = f" Did you mean {' or '.join(map(repr, same))}?" if same else nearest(source, everything)
    raise GradlightError(
        f'There is no classifier {source!r}.{near} A source is "timm/NAME", "torchvision/NAME", "transformers/NAME",'
        ' "scenes" or a torch.nn.Module; the weights of your own network go into checkpoint=.'
    )


def _scenes(pretrained: bool, checkpoint: PathLike | None, labels: Sequence[str] | None) -> LoadedNetwork:
    from .. import __version__
    from ..data.scenes.generator import CLASSES
    from .scenes import classifier as scenes

    if labels is not None and len(labels) != len(CLASSES):
        raise GradlightError(f"The scenes have {len(CLASSES)} classes, but labels= names {len(labels)}.")
    network = scenes.load_bundled() if pretrained and checkpoint is None else scenes.build()
    if checkpoint is not None:
        load_checkpoint(network, checkpoint)
    size = (scenes.SIZE, scenes.SIZE)
    steps = Preprocessing(size=size, resize=size, mean=scenes.MEAN, std=scenes.STD)
    return LoadedNetwork(network, list(labels or CLASSES), steps, "gradlight", __version__)


def _checked_labels(labels: Any) -> list[str] | None:
    if labels is None:
        return None
    if isinstance(labels, (str, bytes)) or not isinstance(labels, Sequence):
        raise GradlightError(f"labels= must be a list of names, one for each class; it is {type(labels).__name__}.")
    wrong = [label for label in labels if not isinstance(label, str)]
    if wrong or not labels:
        found = f"it holds {wrong[0]!r}" if wrong else "it is empty"
        raise GradlightError(f"labels= must be a list of names, one for each class; {found}.")
    return list(labels)
