"""The words of a captioner and their numbers, and text brought to words.

Captions brought to numbers: the vocabulary of a training set, and its captions as tokens.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from nltk.tokenize import TreebankWordTokenizer
from torch import Tensor

from ...errors import GradlightError, nearest
from .decoder import PADDING, SpecialTokens

__all__ = ["UNKNOWN", "Vocabulary", "build_vocabulary", "encode_captions", "tokenize"]

UNKNOWN = ("error", "allow")
"""What may be done with a word that is not in the vocabulary: refuse it, or take UNK in its place."""

_LISTED = 5


def tokenize(text: str) -> list[str]:
    """Divide a text into lower-case words as the Penn Treebank does, without punctuation."""
    return [word for word in TreebankWordTokenizer().tokenize(text.lower()) if re.search(r"\w", word)]


class Vocabulary:
    """The word of every token number that has one, and the numbers with a meaning (BOS, END, UNK)."""

    def __init__(self, words: Mapping[int, str], specials: SpecialTokens) -> None:
        self.words = dict(sorted(words.items()))
        self.specials = specials

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, token: int) -> str:
        return self.words[token]

    def __contains__(self, word: object) -> bool:
        return isinstance(word, str) and word.casefold() in self._numbers

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {word.casefold(): number for number, word in reversed(self.words.items())}

    def decode(self, tokens: Iterable[int]) -> list[str]:
        """Give the words of tokens; a number without a word is shown as it is, "<7>"."""
        return [self.words.get(token, f"<{token}>") for token in tokens]

    def encode(self, text: str | Sequence[str], unk: str = "error") -> list[int]:
        """Give the tokens of a text, or of words; case makes no difference.

        unk: "allow" takes UNK for a word that is not in the vocabulary. Raises GradlightError, with the nearest known
        words, for one otherwise, and for a text without any word.
        """
        if unk not in UNKNOWN:
            raise GradlightError(f'unk={unk!r} is unknown; give "error" or "allow".{nearest(str(unk), UNKNOWN)}')
        words = self._split(text) if isinstance(text, str) else list(text)
        if not words:
            raise GradlightError(f"There is no word in {text!r}, so there is nothing to ask about.")
        missing = list(dict.fromkeys(word for word in words if word not in self))
        if missing and (unk == "error" or self.specials.unk is None):
            raise GradlightError(self._refusal(missing, unk))
        return [self._numbers.get(word.casefold(), self.specials.unk or 0) for word in words]

    def _split(self, text: str) -> list[str]:
        """Divide a text; one that is made of known words between blanks is taken at its word, "<unk>" included."""
        plain = text.split()
        return plain if all(word in self for word in plain) else tokenize(text)

    def _refusal(self, missing: Sequence[str], unk: str) -> str:
        ordinary = [word for number, word in self.words.items() if number != self.specials.unk]
        shown = "; ".join(f"{word!r}.{nearest(word, ordinary)}" for word in missing[:_LISTED])
        more = f" and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
        hint = (
            'unk="allow" (of gradlight.captioner) takes UNK in their place.'
            if unk == "error" and self.specials.unk is not None
            else "This vocabulary has no word for the unknown."
        )
        return f"Not among the {len(self)} words that this captioner knows: {shown}{more} {hint}"

    def to_json(self) -> dict[str, Any]:
        """Describe the vocabulary in JSON types."""
        special = {"bos": self.specials.bos, "end": self.specials.end, "unk": self.specials.unk}
        return {"words": {str(number): word for number, word in self.words.items()}, **special}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Vocabulary:
        """Make it again from what `to_json` gave; raises GradlightError for anything else."""
        try:
            words = {int(number): str(word) for number, word in record["words"].items()}
            unk = record.get("unk")
            specials = SpecialTokens(int(record["bos"]), int(record["end"]), None if unk is None else int(unk))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise GradlightError(f"This is no vocabulary ({error}); it needs words, bos and end.") from error
        return cls(words, specials)


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
    return Vocabulary(words, SpecialTokens(_START_AND_END, _START_AND_END, len(words) if rare else None))


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
