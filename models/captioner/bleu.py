"""The BLEU score of captions: which of their n-grams of one to four words occur in the reference captions."""

from __future__ import annotations

from collections.abc import Sequence

from nltk.translate.bleu_score import corpus_bleu, modified_precision

from ...errors import GradlightError

__all__ = ["bleu"]

_ORDERS = (1, 2, 3, 4)


def bleu(references: Sequence[Sequence[Sequence[str]]], hypotheses: Sequence[Sequence[str]]) -> dict[str, float]:
    """Compute the BLEU of captions of N images against reference captions (Papineni et al., 2002), as nltk does.

    No smoothing: the score is 0 if no n-gram of that order is shared. nltk counts one missed n-gram for a hypothesis
    that is too short to have any.

    Args:
        references: for every image the word lists of its reference captions.
        hypotheses: for every image one word list.

    Returns:
        "BLEU-1" to "BLEU-4" of the corpus, from 0 to 1.

    Raises:
        GradlightError: if the counts differ, if there are no captions, and for texts instead of word lists.

    Example:
        >>> scores = bleu([[["a", "red", "star"], ["a", "star"]]], [["a", "red", "ring"]])
        >>> f"{scores['BLEU-1']:.2f} {scores['BLEU-2']:.2f} {scores['BLEU-3']:.2f}"
        '0.67 0.58 0.00'
    """
    _check_word_lists(references, hypotheses)
    # Where n-grams are shared, shorter ones are too; nltk warns of orders without any and does not give 0.
    orders = [n for n in _ORDERS if _any_shared(references, hypotheses, n)]
    weights = [(1 / n,) * n for n in orders] or [(1.0,)]
    scores = corpus_bleu(references, hypotheses, weights=weights)
    by_order = dict(zip(orders, scores if isinstance(scores, list) else [scores], strict=False))
    return {f"BLEU-{n}": float(by_order.get(n, 0.0)) for n in _ORDERS}


def _any_shared(references: Sequence[Sequence[Sequence[str]]], hypotheses: Sequence[Sequence[str]], order: int) -> bool:
    """Return whether any hypothesis shares an n-gram of this order with its references."""
    pairs = zip(references, hypotheses, strict=True)
    return any(modified_precision(captions, hypothesis, order).numerator for captions, hypothesis in pairs)


def _check_word_lists(references: Sequence[Sequence[Sequence[str]]], hypotheses: Sequence[Sequence[str]]) -> None:
    if len(references) != len(hypotheses):
        raise GradlightError(
            f"There are {len(hypotheses)} hypotheses for {len(references)} sets of references; give one per image."
        )
    if not hypotheses:
        raise GradlightError("BLEU of no captions is undefined; give at least one hypothesis with its references.")
    for image, (captions, hypothesis) in enumerate(zip(references, hypotheses, strict=True)):
        if not captions:
            raise GradlightError(f"Image {image} has no reference; leave it out or give one.")
        if texts := [words for words in (hypothesis, *captions) if isinstance(words, str)]:
            raise GradlightError(f"Image {image} has a text, {texts[0]!r}, not a list of words; split it first.")
