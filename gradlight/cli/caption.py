"""Commands for captioners: caption photos, convert a checkpoint, train a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import GradlightError, nearest
from ..models.captioner.checkpoints import read_checkpoint
from ..models.captioner.format import write_folder
from ..models.captioner.search import DecodingOptions
from .console import is_interactive, print_notice
from .open_model import ModelOptions, open_captioner, read_photos

__all__ = ["caption_images", "convert_checkpoint", "train_network"]

_TRAININGS = ("scenes", "captioner")


def caption_images(images: list[Path], model_options: ModelOptions, decoding: DecodingOptions, as_json: bool) -> int:
    """Print a caption of each photo; photos that cannot be read are left out, with a notice.

    Args:
        images: photos, or folders of photos.
        model_options: the options that name the captioner.
        decoding: how the captions are decoded.
        as_json: print one JSON object per line, with words and log-probabilities.

    Returns:
        The exit status: 1 if some photos cannot be read, else 0.
    """
    model = open_captioner(model_options)
    readable, failures = read_photos(images, model)
    for photo in readable:
        caption = model.caption(photo.image, **decoding.describe())[0]
        if as_json:
            record = {"image": str(photo.path), "caption": caption.text, "log_prob": caption.log_prob}
            words = {"words": caption.words, "word_log_probs": caption.word_log_probs}
            print(json.dumps({**record, **words}, ensure_ascii=False))
        else:
            print(f"{photo.path}: {caption.text} (log-probability {caption.log_prob:.2f})")
    return 1 if failures else 0


def convert_checkpoint(source: Path, folder: Path) -> None:
    """Convert a captioner of another project to a folder in this project's format.

    Args:
        source: a checkpoint of a supported project: its file or its folder.
        folder: the folder to write.
    """
    checkpoint = read_checkpoint(source)
    write_folder(folder, checkpoint, {**checkpoint.facts, "converted from": source.name})
    encoder = (
        "with its encoder"
        if checkpoint.encoder_state is not None
        else "without an encoder, which its files do not contain"
    )
    vocabulary_size = len(checkpoint.vocabulary)
    print(f"wrote {folder}: {checkpoint.project}, {checkpoint.family}, {vocabulary_size} words, {encoder}")


def train_network(what: str, out: Path | None, options: dict[str, Any], photo_options: dict[str, Any]) -> None:
    """Train a network: the scenes classifier, a captioner of scenes, or a captioner of photos.

    Args:
        what: "scenes" or "captioner".
        out: the file (scenes) or the folder (captioner) to write; None is "scenes.safetensors" or "captioner".
        options: keyword arguments of every training.
        photo_options: keyword arguments of the training on photos; "captions" and "images" are None for scenes.

    Raises:
        GradlightError: there is no such training, or only one of captions and images is given.
    """
    if what not in _TRAININGS:
        known = ", ".join(_TRAININGS)
        raise GradlightError(f"There is no training of {what!r}.{nearest(what, _TRAININGS)} Known: {known}.")
    if (photo_options["captions"] is None) != (photo_options["images"] is None):
        raise GradlightError("--captions and --images go together: a captions JSON, and the folder of its photos.")
    if what == "scenes":
        from ..models.scenes.classifier import train as train_classifier

        print(train_classifier(out or Path("scenes.safetensors"), progress=is_interactive(), **options))
        return
    folder = out or Path("captioner")
    if photo_options["captions"] is None:
        from ..models.scenes.captioner import train as train_on_scenes

        print(f"wrote {folder}: {train_on_scenes(folder, progress=is_interactive(), **options)}")
        return
    from ..models.captioner.coco_training import train as train_on_photos

    chosen_options = {name: value for name, value in photo_options.items() if value is not None}
    print_notice("training; the same command resumes a stopped training after the last complete epoch.")
    print(f"wrote {folder}: {train_on_photos(folder, progress=is_interactive(), **options, **chosen_options)}")
