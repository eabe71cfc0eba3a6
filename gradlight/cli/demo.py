"""The demonstration: the sample scenes explained by the bundled networks, and photos if any are given."""

from __future__ import annotations

import json
from importlib.resources import as_file, files
from pathlib import Path

from ..data.scenes import generator as scenes
from ..errors import GradlightError
from ..explainers.explain import explain
from ..explainers.maps import SaliencyMaps
from ..models.captioner import captioner
from ..models.classifiers import classifier
from .console import interactive, table
from .explain import write_pictures
from .open_model import readable

__all__ = ["run"]

_METHODS = ["selective_normgrad", "linear_approx", "grad_cam"]
_COMBINED = "product(linear)"
_CAPTIONED = 1
_FIGURE_14 = ["layer3.0", "layer4.0", "layer4"]  # and their linear product: the layers of the paper's figure


def run(out: Path, photos: list[Path], model: str) -> int:
    """Explain six scenes, a caption, then the photos; write maps and pictures into a folder; give the exit status.

    Raises GradlightError, before anything is done, when photos are given and none can be read.
    """
    good, failures = readable(photos) if photos else ([], [])
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GradlightError(f"{out}: the folder cannot be made: {error.strerror}. Name another: --out.") from error
    _explain_scenes(out)
    _explain_sentence(out)
    if good:
        _explain_photos(out, good, model)
    return 1 if failures else 0


def _explain_scenes(out: Path) -> None:
    folder = files("gradlight.data") / "bundled"
    samples = json.loads((folder / "scenes.json").read_text(encoding="utf-8"))["scenes"]
    truth = [scenes.draw(sample["seed"]) for sample in samples]
    asked = [[scene.objects[0].kind, scene.objects[-1].colour] for scene in truth]
    with as_file(folder) as place:
        maps = explain(
            classifier("scenes"),
            [place / sample["file"] for sample in samples],
            asked,
            methods=_METHODS,
            progress=interactive(),
        )
        maps = maps.joined(maps.combine())
        maps.save(out / "demo.h5")
        written = write_pictures(maps, out / "demo.png")
    table(
        ["scene", "it shows", "asked", "score", *(f"{method} peak" for method in _METHODS)],
        [row for number, scene in enumerate(truth) for row in _rows(maps, number, scene)],
    )
    print(f"\npeak: where {_COMBINED} of the four stages is largest.")
    print("\n".join(f"wrote {path}" for path in [out / "demo.h5", *written]))


def _explain_sentence(out: Path) -> None:
    """Caption one scene, and explain the sentence and each of its words at the layers of the paper's Figure 14."""
    folder = files("gradlight.data") / "bundled"
    sample = json.loads((folder / "scenes.json").read_text(encoding="utf-8"))["scenes"][_CAPTIONED]
    model = captioner("scenes")
    with as_file(folder / sample["file"]) as place:
        caption = model.caption(place)[0]
        print(f"\nscene {_CAPTIONED + 1} in words: {caption} (log-probability {caption.log_prob:.2f})")
        for name, target in (("caption", caption), ("words", caption.words)):
            maps = explain(model, place, target, layers=_FIGURE_14)
            maps = maps.joined(maps.combine())
            maps.save(out / f"{name}.h5")
            written = write_pictures(maps, out / f"{name}.png")
            print("\n".join(f"wrote {path}" for path in [out / f"{name}.h5", *written]))


def _rows(maps: SaliencyMaps, number: int, scene: scenes.Scene) -> list[list[str]]:
    """Say for each target of a scene whether the maps' largest value lies on an object that it names."""
    rows = []
    for k, target in enumerate(maps.targets[number]):
        mask = scene.mask(target.label)
        hits = []
        for method in _METHODS:
            flat = maps.upsampled(method, _COMBINED)[number, k].flatten().argmax().item()
            row, column = divmod(int(flat), maps.size[1])
            hits.append("on the object" if mask[row, column] else "beside it")
        shows = scene.captions[0] if k == 0 else ""
        rows.append([str(number + 1) if k == 0 else "", shows, target.label, f"{target.score:.2f}", *hits])
    return rows


def _explain_photos(out: Path, photos: list[Path], name: str) -> None:
    model = classifier(name)
    for number, path in enumerate(photos, start=1):
        maps = explain(model, path, "top", methods=_METHODS)
        maps = maps.joined(maps.combine())
        target = maps.targets[0][0]
        stem = f"photo-{number}-{path.stem}"
        maps.save(out / f"{stem}.h5")
        written = write_pictures(maps, out / f"{stem}.png")
        print(f"{path}: {target.label}, score {target.score:.2f}; wrote {out / stem}.h5 and {written[0]}")
