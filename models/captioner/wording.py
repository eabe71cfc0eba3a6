"""Captions brought to numbers: the vocabulary of a training set, and its captions as tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ...errors import GradlightError
from .decoder import PADDING, Specials
from .vocabulary import Vocabulary, tokenize

__all__ = ["build_vocabulary", "encode_captions"]

_START_AND_END = 0
_UNK = "UNK"


def build_vocabulary(captions: Iterable[str | Sequence[str]], threshold: int = 5) -> Vocabulary:
    """Make the vocabulary of captions (texts, or lists of words), numbered as the ImageCaptioning project does.

    A word is kept if it occurs at least `threshold` times, case folded. The commonest is 1, words that are equally
    common go by the alphabet; 0 is both BOS and END. UNK is the last, and only there if a word was too rare. Raises
    GradlightError for a threshold below 1 or above every count, and for a caption that is neither text nor words.
    """
    if threshold < 1:
        raise GradlightError(f"A word is kept from {threshold} occurrences on; the threshold must be 1 or more.")
    counts = Counter(word for caption in captions for word in _words(caption))
    if not counts:
        raise GradlightError("There is no word in these captions, so no vocabulary. Give captions with words.")
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    kept = [word for word in ranked if counts[word] >= threshold]
    if not kept:
        raise GradlightError(
            f"No word occurs {threshold} times; the commonest, {ranked[0]!r}, has a count of {counts[ranked[0]]}. "
            "Lower the threshold or give more captions."
        )
    rare = len(kept) < len(ranked)
    words = dict(enumerate([*kept, _UNK] if rare else kept, 1))
    return Vocabulary(words, Specials(_START_AND_END, _START_AND_END, len(words) if rare else None))


def encode_captions(vocabulary: Vocabulary, captions: Iterable[str | Sequence[str]], length: int) -> Tensor:
    """Give the tokens [N,length] of captions (texts, or lists of words), int64, padded at the right with −1.

    A caption is cut behind `length` words; rare words become UNK. Raises GradlightError for a length below 1, a caption
    that has no word or is neither text nor words, and for rare words where the vocabulary has no UNK.
    """
    if length < 1:
        raise GradlightError(f"Captions of length {length} hold nothing; the length must be 1 or more.")
    rows = [vocabulary.encode(_words(caption), unk="allow")[:length] for caption in captions]
    padded = [row + [PADDING] * (length - len(row)) for row in rows]
    return torch.tensor(padded, dtype=torch.long).reshape(len(rows), length)


def _words(caption: str | Sequence[str]) -> list[str]:
    words = tokenize(caption) if isinstance(caption, str) else caption
    # A list of whole captions would pass for a list of words.
    if odd := [word for word in words if not isinstance(word, str) or word.split() != [word]]:
        raise GradlightError(f"A caption is one text or a list of single words, but a word here is {odd[0]!r}.")
    return [word.casefold() for word in words]
