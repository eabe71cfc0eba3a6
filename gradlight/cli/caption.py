"""What the subcommands about captioners do: caption, convert, and training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import GradlightError, nearest
from ..models.captioner.checkpoints import read_checkpoint
from ..models.captioner.format import write_folder
from ..models.captioner.search import DecodingOptions
from .console import interactive, notice
from .open_model import ModelOptions, open_captioner, readable

__all__ = ["caption_images", "convert", "train_network"]

_TRAININGS = ("scenes", "captioner")


def caption_images(images: list[Path], source: ModelOptions, saying: DecodingOptions, as_json: bool) -> int:
    """Print a caption of each photo; give the exit status. Photos that cannot be read are left out and told."""
    good, failures = readable(images)
    model = open_captioner(source)
    for path in good:
        caption = model.caption(path, **saying.describe())[0]
        if as_json:
            record = {"image": str(path), "caption": caption.text, "log_prob": caption.log_prob}
            words = {"words": caption.words, "word_log_probs": caption.word_log_probs}
            print(json.dumps({**record, **words}, ensure_ascii=False))
        else:
            print(f"{path}: {caption.text} (log-probability {caption.log_prob:.2f})")
    return 1 if failures else 0


def convert(source: Path, folder: Path) -> None:
    """Write a captioner of another project as a folder of our own."""
    found = read_checkpoint(source)
    write_folder(folder, found, {**found.facts, "converted from": source.name})
    eye = "with its encoder" if found.encoder_state is not None else "without an encoder, which its files do not hold"
    print(f"wrote {folder}: {found.project}, {found.family}, {len(found.vocabulary)} words, {eye}")


def train_network(what: str, out: Path | None, options: dict[str, Any], photos: dict[str, Any]) -> None:
    """Train a network: the scenes classifier, a captioner of scenes, or one of photos with captions.

    options: for every training. photos: of the training on photos; its captions and images are None for scenes.
    """
    if what not in _TRAININGS:
        known = ", ".join(_TRAININGS)
        raise GradlightError(f"There is no training of {what!r}.{nearest(what, _TRAININGS)} Known: {known}.")
    if (photos["captions"] is None) != (photos["images"] is None):
        raise GradlightError("--captions and --images go together: a captions JSON, and the folder of its photos.")
    if what == "scenes":
        from ..models.scenes.classifier import train as train_classifier

        print(train_classifier(out or Path("scenes.safetensors"), progress=interactive(), **options))
        return
    folder = out or Path("captioner")
    if photos["captions"] is None:
        from ..models.scenes.captioner import train as train_on_scenes

        print(f"wrote {folder}: {train_on_scenes(folder, progress=interactive(), **options)}")
        return
    from ..models.captioner.coco_training import train as train_on_photos

    given = {name: value for name, value in photos.items() if value is not None}
    notice("training; after a stop, the same command goes on from the last whole epoch.")
    print(f"wrote {folder}: {train_on_photos(folder, progress=interactive(), **options, **given)}")
