"""The vocabulary of a captioner: texts are split into words, words become token numbers, and numbers become words."""

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
"""What `unk=` accepts for a word that is not in the vocabulary: an error, or UNK in its place."""

_MAX_LISTED = 5
_START_AND_END = 0
_UNK = "UNK"


def tokenize(text: str) -> list[str]:
    """Split a text into lower-case words as the Penn Treebank does, without punctuation.

    Args:
        text: the text.

    Returns:
        The words.

    Example:
        >>> tokenize("A red star, above.")
        ['a', 'red', 'star', 'above']
    """
    return [word for word in TreebankWordTokenizer().tokenize(text.lower()) if re.search(r"\w", word)]


class Vocabulary:
    """The word of every token number that has one, and the special tokens.

    Args:
        words: number → word.
        special_tokens: the numbers of BOS, END and UNK.

    Example:
        >>> vocabulary = Vocabulary({1: "red", 2: "star"}, SpecialTokens(bos=0, end=0))
        >>> vocabulary.encode("Red star")
        [1, 2]
        >>> vocabulary.decode([2, 7])
        ['star', '<7>']
    """

    def __init__(self, words: Mapping[int, str], special_tokens: SpecialTokens) -> None:
        self.words = dict(sorted(words.items()))
        self.special_tokens = special_tokens

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
        """Return the words of tokens; a number without a word is written as "<7>"."""
        return [self.words.get(token, f"<{token}>") for token in tokens]

    def encode(self, text: str | Sequence[str], unk: str = "error") -> list[int]:
        """Return the tokens of a text, or of words; case makes no difference.

        Args:
            text: a text, which is split into words, or a list of words.
            unk: "allow" takes UNK for a word that is not in the vocabulary; "error" refuses it.

        Returns:
            One token per word.

        Raises:
            GradlightError: for an unknown word, with the nearest words of the vocabulary, and for a text without words.
        """
        if unk not in UNKNOWN:
            raise GradlightError(f'unk={unk!r} is unknown; give "error" or "allow".{nearest(str(unk), UNKNOWN)}')
        words = self._split(text) if isinstance(text, str) else list(text)
        if not words:
            raise GradlightError(f"There is no word in {text!r}, so there is nothing to explain.")
        missing = list(dict.fromkeys(word for word in words if word not in self))
        if missing and (unk == "error" or self.special_tokens.unk is None):
            raise GradlightError(self._format_unknown(missing, unk))
        return [self._numbers.get(word.casefold(), self.special_tokens.unk or 0) for word in words]

    def _split(self, text: str) -> list[str]:
        """Split a text; blanks alone separate the words if all of them are in the vocabulary, such as "<unk>"."""
        plain = text.split()
        return plain if all(word in self for word in plain) else tokenize(text)

    def _format_unknown(self, missing: Sequence[str], unk: str) -> str:
        """Format the message for unknown words."""
        ordinary = [word for number, word in self.words.items() if number != self.special_tokens.unk]
        listed = "; ".join(f"{word!r}.{nearest(word, ordinary)}" for word in missing[:_MAX_LISTED])
        more = f" and {len(missing) - _MAX_LISTED} more" if len(missing) > _MAX_LISTED else ""
        hint = (
            'unk="allow" (of gradlight.captioner) takes UNK in their place.'
            if unk == "error" and self.special_tokens.unk is not None
            else "This vocabulary has no word for the unknown."
        )
        return f"Not among the {len(self)} words of this captioner's vocabulary: {listed}{more} {hint}"

    def to_json(self) -> dict[str, Any]:
        """Describe the vocabulary in JSON types."""
        special = {"bos": self.special_tokens.bos, "end": self.special_tokens.end, "unk": self.special_tokens.unk}
        return {"words": {str(number): word for number, word in self.words.items()}, **special}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Vocabulary:
        """Restore the vocabulary from the value of `to_json`; raises GradlightError for every other value."""
        try:
            words = {int(number): str(word) for number, word in record["words"].items()}
            unk = record.get("unk")
            special_tokens = SpecialTokens(int(record["bos"]), int(record["end"]), None if unk is None else int(unk))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise GradlightError(f"This is not a vocabulary ({error}); it needs words, bos and end.") from error
        return cls(words, special_tokens)


# --- From training captions to a vocabulary and tokens


def build_vocabulary(captions: Iterable[str | Sequence[str]], threshold: int = 5) -> Vocabulary:
    """Build the vocabulary of captions, numbered as the ImageCaptioning project does.

    The most frequent word is 1, and equally frequent words are in alphabetical order; 0 is both BOS and END. UNK is the
    last, and exists only if a word was too rare.

    Args:
        captions: texts, or lists of words.
        threshold: a word is kept if it occurs at least this often, case folded.

    Returns:
        The vocabulary.

    Raises:
        GradlightError: for a threshold below 1 or above every count, and for a caption that is neither text nor words.

    Example:
        >>> build_vocabulary(["a red star", "a ring", "a star"], threshold=2).words
        {1: 'a', 2: 'star', 3: 'UNK'}
    """
    if threshold < 1:
        raise GradlightError(f"A word is kept from {threshold} occurrences on; the threshold must be 1 or more.")
    counts = Counter(word for caption in captions for word in _caption_words(caption))
    if not counts:
        raise GradlightError("There is no word in these captions, so no vocabulary. Give captions with words.")
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    kept = [word for word in ranked if counts[word] >= threshold]
    if not kept:
        raise GradlightError(
            f"No word occurs {threshold} times; the most frequent, {ranked[0]!r}, has a count of {counts[ranked[0]]}. "
            "Lower the threshold or give more captions."
        )
    has_rare = len(kept) < len(ranked)
    words = dict(enumerate([*kept, _UNK] if has_rare else kept, 1))
    return Vocabulary(words, SpecialTokens(_START_AND_END, _START_AND_END, len(words) if has_rare else None))


def encode_captions(vocabulary: Vocabulary, captions: Iterable[str | Sequence[str]], length: int) -> Tensor:
    """Encode captions as one tensor.

    Args:
        vocabulary: the words; rare words become UNK.
        captions: N texts, or lists of words.
        length: captions are truncated to this number of words.

    Returns:
        The tokens [N,length], int64, padded at the right with −1.

    Raises:
        GradlightError: for a length below 1, for a caption that has no word or is neither text nor words, and for rare
            words where the vocabulary has no UNK.

    Example:
        >>> words = build_vocabulary(["a red star", "a star"], threshold=1)
        >>> encode_captions(words, ["a star", "star"], length=3).tolist()
        [[1, 2, -1], [2, -1, -1]]
    """
    if length < 1:
        raise GradlightError(f"Captions of length {length} hold nothing; the length must be 1 or more.")
    rows = [vocabulary.encode(_caption_words(caption), unk="allow")[:length] for caption in captions]
    padded = [row + [PADDING] * (length - len(row)) for row in rows]
    return torch.tensor(padded, dtype=torch.long, device="cpu").reshape(len(rows), length)


def _caption_words(caption: str | Sequence[str]) -> list[str]:
    """Return the words of a caption, case folded; raises GradlightError for what is no caption."""
    words = tokenize(caption) if isinstance(caption, str) else caption
    # A list of whole captions could be taken for a list of words.
    if invalid := [word for word in words if not isinstance(word, str) or word.split() != [word]]:
        raise GradlightError(f"A caption is one text or a list of single words, but a word here is {invalid[0]!r}.")
    return [word.casefold() for word in words]
