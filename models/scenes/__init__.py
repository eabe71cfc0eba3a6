"""The bundled networks of the generated scenes: a classifier and a captioner, with their training.

`SOURCE` brings them, and the scenes' images, to the registry; each part is imported when it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from PIL import Image

from ...errors import GradlightError
from ..checkpoints import PathLike, load_checkpoint
from ..preprocessing import Preprocessing
from ..registry import ImageScheme, LoadedNetwork, Source

__all__ = ["SOURCE", "captioner_folder", "draw_image", "open_classifier", "stored_name"]


def stored_name(name: str) -> str:
    """Give a scene's name as files hold it.

    Args:
        name: "scenes:SEED"; leading zeros are allowed.

    Returns:
        The name without leading zeros.

    Raises:
        GradlightError: If the name is wrong or its seed is out of range.

    Example:
        >>> from gradlight.models.scenes import stored_name
        >>> stored_name("scenes:007")
        'scenes:7'
    """
    from ...data.scenes import generator

    return generator.name(_seed(name))


def draw_image(name: str) -> Image.Image:
    """Draw the image of a scene's name, "scenes:SEED"; raises GradlightError as `stored_name` does."""
    from ...data.scenes import generator

    return generator.draw(_seed(name)).image


def open_classifier(
    *, pretrained: bool, checkpoint: PathLike | None = None, labels: Sequence[str] | None = None
) -> LoadedNetwork:
    """Build the classifier of the scenes.

    Args:
        pretrained: Load the bundled weights, unless there is a checkpoint.
        checkpoint: A file of weights.
        labels: Other names for the classes, as many as the scenes have.

    Returns:
        The network, which is multi-label, with the scenes' preprocessing.

    Raises:
        GradlightError: If the number of labels is wrong, or the checkpoint does not fit.
    """
    from ... import __version__
    from ...data.scenes.generator import CLASSES
    from . import classifier

    if labels is not None and len(labels) != len(CLASSES):
        raise GradlightError(f"The scenes have {len(CLASSES)} classes, but labels= names {len(labels)}.")
    network = classifier.load_bundled() if pretrained and checkpoint is None else classifier.build()
    if checkpoint is not None:
        load_checkpoint(network, checkpoint)
    size = (classifier.SIZE, classifier.SIZE)
    preprocessing = Preprocessing(size=size, resize=size, mean=classifier.MEAN, std=classifier.STD)
    return LoadedNetwork(network, list(labels or CLASSES), preprocessing, "gradlight", __version__, multi_label=True)


def captioner_folder() -> Path:
    """Give the folder of the bundled captioner's checkpoint."""
    return Path(str(files("gradlight.data"))) / "bundled" / "captioner"


def _seed(name: str) -> int:
    from ...data.scenes import generator

    seed = generator.seed_of(name)
    if seed is None:
        raise GradlightError(f'{name!r} names no scene; give "scenes:SEED".')
    return seed


SOURCE = Source(
    "scenes",
    images={"scenes": ImageScheme(stored_name, draw_image)},
    classifiers={"scenes": open_classifier},
    captioners={"scenes": captioner_folder},
)
