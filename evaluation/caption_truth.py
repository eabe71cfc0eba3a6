"""How true a captioner's sentences about generated scenes are, and how like the grammar's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tqdm.auto import tqdm

from ..data.scenes import generator as scenes
from ..data.scenes.grammar import is_true
from ..errors import GradlightError
from ..models.captioner import Captioner
from ..models.captioner.bleu import bleu
from .tables import Result, Table

__all__ = ["CaptionTruth", "caption_truth", "told"]

_TOGETHER = 64


@dataclass(frozen=True)
class CaptionTruth:
    """What came out: scenes, true captions among theirs, BLEU-1 to BLEU-4, and up to 20 captions that are false."""

    count: int
    true: int
    bleu: dict[str, float]
    false: tuple[tuple[int, str], ...]

    @property
    def share(self) -> float:
        """The share of true captions, 0…1."""
        return self.true / self.count


def caption_truth(
    model: Captioner, seeds: Sequence[int], beam_size: int = 3, size: int = 160, progress: bool = False
) -> CaptionTruth:
    """Caption the scenes of some seeds, and hold each caption against its scene (`data.sentences.is_true`).

    A caption is true if every word of it is: objects, colours, sizes, relation, number. BLEU is against all sentences
    of the grammar about that scene. Raises GradlightError for no seeds.
    """
    if not seeds:
        raise GradlightError("There is no scene to caption: give at least one seed.")
    said: list[list[str]] = []
    written: list[list[list[str]]] = []
    false: list[tuple[int, str]] = []
    with tqdm(total=len(seeds), unit="scene", disable=not progress) as bar:
        for start in range(0, len(seeds), _TOGETHER):
            drawn = [scenes.draw(seed, size) for seed in seeds[start : start + _TOGETHER]]
            captions = model.caption([scene.image for scene in drawn], beam_size=beam_size)
            for scene, caption in zip(drawn, captions, strict=True):
                said.append([str(word) for word in caption.words])
                written.append([text.split() for text in scene.captions])
                if not is_true(scene, caption.words):
                    false.append((scene.seed, caption.text))
            bar.update(len(drawn))
    return CaptionTruth(len(said), len(said) - len(false), bleu(written, said), tuple(false[:20]))


def told(found: CaptionTruth) -> Result:
    """Tell what came out as figures and a table, with the first of the false captions."""
    figures = {"scenes": found.count, "true": found.share, **found.bleu}
    notes = [f"False: scene {seed}: {text}" for seed, text in found.false[:5]]
    table = Table("Captions of held-out scenes", list(figures), [list(figures.values())], notes)
    return Result("caption_truth", figures, [table])
