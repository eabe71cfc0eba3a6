"""Command `demo`: explain the sample scenes with the bundled networks, and photos if any are given."""

from __future__ import annotations

import json
from importlib.resources import as_file, files
from pathlib import Path

from ..data.scenes import generator as scenes
from ..errors import GradlightError
from ..explainers.explain import explain
from ..explainers.maps import SaliencyMaps
from ..models.base import Explainable
from ..models.captioner import captioner
from ..models.classifiers import classifier
from .console import is_interactive, print_table
from .explain import explain_photos, write_pictures
from .open_model import ReadPhoto, read_photos

__all__ = ["run_demo"]

_METHODS = ["selective_normgrad", "linear_approx", "grad_cam"]
_COMBINED = "product(linear)"
_CAPTIONED_SCENE = 1
# The layers of the paper's Figure 14; it shows their linear product too.
_FIGURE_14 = ["layer3.0", "layer4.0", "layer4"]


def run_demo(out: Path, photos: list[Path], model_name: str) -> int:
    """Explain six scenes, a caption, then the photos; write maps and pictures into a folder.

    Args:
        out: the folder; it is created.
        photos: photos, or folders of photos; may be empty.
        model_name: the classifier for the photos.

    Returns:
        The exit status: 1 if some photos cannot be read, else 0.

    Raises:
        GradlightError: photos are given and none can be read, or the folder cannot be created; nothing is written then.
    """
    readable: list[ReadPhoto] = []
    failures: list[tuple[str, str]] = []
    if photos:
        model = classifier(model_name)
        readable, failures = read_photos(photos, model, keep_originals=True)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GradlightError(
            f"{out}: the folder cannot be created: {error.strerror}. Name another one with --out."
        ) from error
    _explain_scenes(out)
    _explain_caption(out)
    if readable:
        _explain_photos(out, readable, model)
    return 1 if failures else 0


def _explain_scenes(out: Path) -> None:
    """Explain two targets of each sample scene, and print whether the maps are largest on the right objects."""
    folder = files("gradlight.data") / "bundled"
    samples = json.loads((folder / "scenes.json").read_text(encoding="utf-8"))["scenes"]
    drawn = [scenes.draw(sample["seed"]) for sample in samples]
    targets = [[scene.objects[0].kind, scene.objects[-1].colour] for scene in drawn]
    with as_file(folder) as path:
        maps = explain(
            classifier("scenes"),
            [path / sample["file"] for sample in samples],
            targets,
            methods=_METHODS,
            progress=is_interactive(),
        )
        maps = maps.joined(maps.combine())
        maps.save(out / "demo.h5")
        written = write_pictures(maps, out / "demo.png")
    print_table(
        ["scene", "it shows", "asked", "score", *(f"{method} peak" for method in _METHODS)],
        [row for number, scene in enumerate(drawn) for row in _table_rows(maps, number, scene)],
    )
    print(f"\npeak: where {_COMBINED} of the four stages is largest.")
    print("\n".join(f"wrote {path}" for path in [out / "demo.h5", *written]))


def _explain_caption(out: Path) -> None:
    """Caption one scene, and explain the caption and each of its words at the layers of the paper's Figure 14."""
    folder = files("gradlight.data") / "bundled"
    sample = json.loads((folder / "scenes.json").read_text(encoding="utf-8"))["scenes"][_CAPTIONED_SCENE]
    model = captioner("scenes")
    with as_file(folder / sample["file"]) as path:
        caption = model.caption(path)[0]
        print(f"\nscene {_CAPTIONED_SCENE + 1} in words: {caption} (log-probability {caption.log_prob:.2f})")
        for name, target in (("caption", caption), ("words", caption.words)):
            maps = explain(model, path, target, layers=_FIGURE_14)
            maps = maps.joined(maps.combine())
            maps.save(out / f"{name}.h5")
            written = write_pictures(maps, out / f"{name}.png")
            print("\n".join(f"wrote {file}" for file in [out / f"{name}.h5", *written]))


def _table_rows(maps: SaliencyMaps, number: int, scene: scenes.Scene) -> list[list[str]]:
    """Make one row per target of a scene: whether each method's map is largest on an object of the target."""
    rows = []
    for k, target in enumerate(maps.targets[number]):
        mask = scene.mask(target.label)
        hits = []
        for method in _METHODS:
            peak = int(maps.upsampled(method, _COMBINED)[number, k].flatten().argmax())
            row, column = divmod(peak, maps.size[1])
            hits.append("on the object" if mask[row, column] else "beside it")
        shows = scene.captions[0] if k == 0 else ""
        rows.append([str(number + 1) if k == 0 else "", shows, target.label, f"{target.score:.2f}", *hits])
    return rows


def _explain_photos(out: Path, photos: list[ReadPhoto], model: Explainable) -> None:
    """Explain the most probable class of each photo."""
    for number, photo in enumerate(photos, start=1):
        maps = explain_photos(model, [photo], "top", methods=_METHODS)
        maps = maps.joined(maps.combine())
        target = maps.targets[0][0]
        stem = f"photo-{number}-{photo.path.stem}"
        maps.save(out / f"{stem}.h5")
        written = write_pictures(maps, out / f"{stem}.png")
        print(f"{photo.path}: {target.label}, score {target.score:.2f}; wrote {out / stem}.h5 and {written[0]}")
