"""BLEU: how many of a caption's runs of one to four words occur in what people wrote."""

from __future__ import annotations

from collections.abc import Sequence

from nltk.translate.bleu_score import corpus_bleu, modified_precision

from ...errors import GradlightError

__all__ = ["bleu"]

_ORDERS = (1, 2, 3, 4)


def bleu(references: Sequence[Sequence[Sequence[str]]], hypotheses: Sequence[Sequence[str]]) -> dict[str, float]:
    """Score captions of N images against what people wrote: "BLEU-1" to "BLEU-4" of the whole corpus, 0 to 1.

    references: the word lists of every image; hypotheses: one word list per image. As nltk computes it (Papineni et
    al. 2002), without smoothing: 0 if no run of that many words is shared. nltk counts one missed run for a hypothesis
    that is too short to have any. Raises GradlightError for counts that differ, for none, and for texts instead of
    word lists.
    """
    _check(references, hypotheses)
    # Where runs of n words are shared, shorter ones are too; nltk warns of orders without any and does not give 0.
    shared = [n for n in _ORDERS if _any_shared(references, hypotheses, n)]
    weights = [(1 / n,) * n for n in shared] or [(1.0,)]
    scores = corpus_bleu(references, hypotheses, weights=weights)
    known = dict(zip(shared, scores if isinstance(scores, list) else [scores], strict=False))
    return {f"BLEU-{n}": float(known.get(n, 0.0)) for n in _ORDERS}


def _any_shared(references: Sequence[Sequence[Sequence[str]]], hypotheses: Sequence[Sequence[str]], order: int) -> bool:
    pairs = zip(references, hypotheses, strict=True)
    return any(modified_precision(written, said, order).numerator for written, said in pairs)


def _check(references: Sequence[Sequence[Sequence[str]]], hypotheses: Sequence[Sequence[str]]) -> None:
    if len(references) != len(hypotheses):
        raise GradlightError(
            f"There are {len(hypotheses)} hypotheses for {len(references)} sets of references; give one per image."
        )
    if not hypotheses:
        raise GradlightError("BLEU of no captions is undefined; give at least one hypothesis with its references.")
    for place, (written, said) in enumerate(zip(references, hypotheses, strict=True)):
        if not written:
            raise GradlightError(f"Image {place} has no reference; leave it out or give one.")
        if texts := [words for words in (said, *written) if isinstance(words, str)]:
            raise GradlightError(f"Image {place} has a text, {texts[0]!r}, not a list of words; divide it first.")
