"""Caption truth: the share of a captioner's sentences about generated scenes that are true, and their BLEU."""

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

__all__ = ["CaptionTruth", "caption_truth", "caption_truth_result"]

_BATCH = 64
_MAX_FALSE_CAPTIONS = 20


@dataclass(frozen=True)
class CaptionTruth:
    """The captions of some scenes, compared with the scenes.

    Args:
        count: Scenes.
        true: True captions.
        bleu: BLEU-1 to BLEU-4.
        false: Up to 20 false captions, each with the seed of its scene.
    """

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
    """Caption scenes, and compare each caption with its scene (`data.scenes.grammar.is_true`).

    A caption is true if every word of it is: objects, colours, sizes, relation, number. BLEU is computed against all
    sentences of the grammar about the scene.

    Args:
        model: The captioner.
        seeds: Seeds of the scenes.
        beam_size: Of the beam search.
        size: Side of the scenes, in pixels.
        progress: Show a progress bar.

    Returns:
        The counts.

    Raises:
        GradlightError: There are no seeds.
    """
    if not seeds:
        raise GradlightError("There is no scene to caption: give at least one seed.")
    hypotheses: list[list[str]] = []
    references: list[list[list[str]]] = []
    false: list[tuple[int, str]] = []
    with tqdm(total=len(seeds), unit="scene", disable=not progress) as bar:
        for start in range(0, len(seeds), _BATCH):
            batch = [scenes.draw(seed, size) for seed in seeds[start : start + _BATCH]]
            captions = model.caption([scene.image for scene in batch], beam_size=beam_size)
            for scene, caption in zip(batch, captions, strict=True):
                hypotheses.append([str(word) for word in caption.words])
                references.append([text.split() for text in scene.captions])
                if not is_true(scene, caption.words):
                    false.append((scene.seed, caption.text))
            bar.update(len(batch))
    true = len(hypotheses) - len(false)
    return CaptionTruth(len(hypotheses), true, bleu(references, hypotheses), tuple(false[:_MAX_FALSE_CAPTIONS]))


def caption_truth_result(truth: CaptionTruth) -> Result:
    """Make the result: figures and a table, with the first of the false captions as notes.

    Args:
        truth: The counts.

    Returns:
        The result.

    Example:
        >>> caption_truth_result(CaptionTruth(4, 3, {"bleu_1": 0.5}, ((7, "a red circle"),))).figures
        {'scenes': 4, 'true': 0.75, 'bleu_1': 0.5}
    """
    figures = {"scenes": truth.count, "true": truth.share, **truth.bleu}
    notes = [f"False: scene {seed}: {text}" for seed, text in truth.false[:5]]
    table = Table("Captions of validation scenes", list(figures), [list(figures.values())], notes)
    return Result("caption_truth", figures, [table])
