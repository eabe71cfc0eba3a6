"""Captions, and the targets of a captioner: its own caption, a text, a phrase or words, for all images or per image."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...errors import GradlightError
from ..objective import Target
from .search import Hypothesis
from .vocabulary import Vocabulary

__all__ = [
    "Caption",
    "CaptionTarget",
    "CaptionTargetSpec",
    "Phrase",
    "Word",
    "find_words",
    "parse",
    "resolve",
    "word_by_word",
]


# --- Captions and their words


@dataclass(frozen=True)
class Phrase:
    """The words start … stop (exclusive) of a caption, as one target, given the words before them.

    Args:
        tokens: the tokens of the caption.
        start: the first word.
        stop: the word behind the last one.
        ended: whether the caption ends there; if not, the length limit truncated it.
    """

    tokens: tuple[int, ...]
    start: int
    stop: int
    ended: bool = True


class Word(str):
    """A word that knows its caption: a str, and a target of its own."""

    phrase: Phrase

    @classmethod
    def at(cls, text: str, tokens: tuple[int, ...], position: int, ended: bool = True) -> Word:
        """Make the word at a position of a caption's tokens."""
        word = cls(text)
        word.phrase = Phrase(tokens, position, position + 1, ended)
        return word


@dataclass(frozen=True)
class Caption:
    """A caption with its words and tokens, and their log-probabilities.

    Args:
        text: the words, joined by blanks.
        words: each of them is a target for `gradlight.explain`.
        tokens: one per word, without END.
        log_prob: of the whole caption, END included if it is counted and was decoded.
        word_log_probs: of each word, given the words before it.
        ended: whether END was decoded; if not, the length limit truncated the caption.

    Example:
        >>> from gradlight.data.scenes import draw
        >>> caption = gl.captioner("scenes", device="cpu").caption(draw(1).image)[0]
        >>> caption.words[1:3], len(caption.word_log_probs)
        (['large', 'purple'], 9)
        >>> caption.phrase("cyan star").start
        7
    """

    text: str
    words: list[Word]
    tokens: list[int]
    log_prob: float
    word_log_probs: list[float]
    ended: bool = True

    def __str__(self) -> str:
        return self.text

    def span(self, start: int, stop: int) -> Phrase:
        """Return the words start … stop (exclusive) as one target.

        Args:
            start: the first word.
            stop: the word behind the last one.

        Returns:
            A target for `gradlight.explain`.

        Raises:
            GradlightError: if the range is empty or exceeds the caption.
        """
        if not 0 <= start < stop <= len(self.tokens):
            raise GradlightError(
                f"{self.text!r} has the words 0 to {len(self.tokens) - 1}; there is none from {start} to before {stop}."
            )
        return Phrase(tuple(self.tokens), start, stop, self.ended)

    def phrase(self, text: str) -> Phrase:
        """Return words that follow one another as one target.

        Args:
            text: the words, such as "red star"; their first occurrence counts.

        Returns:
            A target for `gradlight.explain`.

        Raises:
            GradlightError: if the words do not follow one another in the caption.
        """
        return self.span(*find_words(text.split(), self.words))


def find_words(phrase: Sequence[str], words: Sequence[str]) -> tuple[int, int]:
    """Find where words follow one another in a caption.

    Args:
        phrase: the words to find; case makes no difference.
        words: the words of the caption.

    Returns:
        The first word and the word behind the last one.

    Raises:
        GradlightError: if the words do not follow one another, or if there are none.

    Example:
        >>> find_words(["red", "star"], ["a", "Red", "star"])
        (1, 3)
    """
    phrase_key, caption_key = [word.casefold() for word in phrase], [word.casefold() for word in words]
    for start in range(len(caption_key) - len(phrase_key) + 1 if phrase_key else 0):
        if caption_key[start : start + len(phrase_key)] == phrase_key:
            return start, start + len(phrase_key)
    raise GradlightError(
        f"{' '.join(phrase)!r} is not in the caption {' '.join(words)!r}. Give words that are in it one after another."
    )


# --- Targets


@dataclass(frozen=True)
class CaptionTarget(Target):
    """A caption or a part of it.

    Args:
        kind: "caption" or "word".
        index: the position of the first word.
        label: the words.
        score: the log-probability.
        tokens: of the caption, without END.
        start: the first word of the part.
        stop: the word behind its last one.
        counts_end: whether the score counts END.
        ended: whether the caption's loss counts END; it does not where the length limit truncated the caption.
    """

    tokens: tuple[int, ...] = ()
    start: int = 0
    stop: int = 0
    counts_end: bool = True
    ended: bool = True


@dataclass(frozen=True)
class CaptionTargetSpec:
    """A target as far as it is known before the network has run.

    Args:
        text: as the caller wrote it, for the record.
        tokens: of the caption; None: the caption that the captioner generates.
        phrase: words to find in the caption.
        span: the first word of the part and the word behind its last one; None: the whole caption.
        per_word: whether every word of the part is a target of its own.
        ended: whether the caption ends there; if not, the length limit truncated it.
    """

    text: str
    tokens: tuple[int, ...] | None = None
    phrase: tuple[str, ...] = ()
    span: tuple[int, int] | None = None
    per_word: bool = False
    ended: bool = True


def parse(target: Any, vocabulary: Vocabulary, unk: str) -> list[list[CaptionTargetSpec]]:
    """Parse the `target=` of a captioner.

    Args:
        target: None: the caption that the captioner generates. A text: that caption; "a [red star] above" is the words
            between the brackets, and "[red star]" these words of the generated caption. A Caption, Phrase or Word:
            itself. A list has one entry per image, or exactly one for all; an entry that is a list is several targets;
            the words of one caption (`caption.words`) are one entry with a target per word.
        vocabulary: the captioner's words.
        unk: what is done with unknown words (`Vocabulary.encode`).

    Returns:
        One row of target specs per image, or one row for all images.

    Raises:
        GradlightError: for every other target, and for words that are not in the vocabulary.

    Example:
        >>> from gradlight.models.captioner.decoder import SpecialTokens
        >>> vocabulary = Vocabulary({1: "a", 2: "red", 3: "star"}, SpecialTokens(bos=0, end=0))
        >>> parse("a [red star]", vocabulary, unk="error")[0][0].span
        (1, 3)
    """
    if not isinstance(target, (list, tuple)) or _are_words(target):
        return [_parse_entry(target, vocabulary, unk)]
    if not target:
        raise GradlightError(
            "The list of targets is empty. Give a text per image, or None, which is the generated caption."
        )
    return [_parse_entry(entry, vocabulary, unk) for entry in target]


def word_by_word(rows: Sequence[Sequence[CaptionTargetSpec]]) -> list[list[CaptionTargetSpec]]:
    """Make every word of the targets a target of its own."""
    return [[replace(spec, per_word=True) for spec in row] for row in rows]


def resolve(
    spec: CaptionTargetSpec, hypothesis: Hypothesis | None, vocabulary: Vocabulary, count_end: bool
) -> list[CaptionTarget]:
    """Resolve a target spec for one image.

    Args:
        spec: the target as it was parsed.
        hypothesis: the caption that the captioner has generated; only read where the spec has no caption.
        vocabulary: the captioner's words.
        count_end: whether END counts in the log-probability of a whole caption.

    Returns:
        The targets: several where the spec has one per word.

    Raises:
        GradlightError: if a phrase is not in the caption, and for the words of an empty caption.
    """
    if spec.tokens is None and hypothesis is not None:
        spec = replace(spec, tokens=hypothesis.tokens, ended=hypothesis.ended)
    tokens = spec.tokens or ()
    words = vocabulary.decode(tokens)
    span = find_words(spec.phrase, words) if spec.phrase else spec.span
    if spec.per_word:
        start, stop = span or (0, len(tokens))
        if start == stop:
            raise GradlightError("The generated caption of this image is empty (END comes first): it has no words.")
        return [_part(tokens, words, at, at + 1, spec.ended and count_end) for at in range(start, stop)]
    if span is not None:
        return [_part(tokens, words, *span, spec.ended and count_end)]
    end = spec.ended and count_end
    return [CaptionTarget("caption", 0, " ".join(words), tokens=tokens, stop=len(tokens), counts_end=end, ended=end)]


def _part(tokens: tuple[int, ...], words: Sequence[str], start: int, stop: int, ended: bool) -> CaptionTarget:
    """Make the target of the words start … stop (exclusive) of a caption."""
    label = " ".join(words[start:stop])
    return CaptionTarget("word", start, label, tokens=tokens, start=start, stop=stop, counts_end=False, ended=ended)


def _are_words(target: Sequence[Any]) -> bool:
    """Return whether these are words of one caption, and not a list with an entry per image."""
    return (
        bool(target)
        and len({word.phrase.tokens if isinstance(word, Word) else None for word in target}) == 1
        and all(isinstance(word, Word) for word in target)
    )


def _parse_entry(entry: Any, vocabulary: Vocabulary, unk: str) -> list[CaptionTargetSpec]:
    """Parse what one image has: a target, a list of targets, or the words of a caption."""
    if not isinstance(entry, (list, tuple)):
        return [_parse_single(entry, vocabulary, unk)]
    if not entry:
        raise GradlightError("One image's list of targets is empty. Give at least one target per image.")
    specs: list[CaptionTargetSpec] = []
    for target in entry:
        words = isinstance(target, (list, tuple)) and _are_words(target)
        specs += _parse_entry(target, vocabulary, unk) if words else [_parse_single(target, vocabulary, unk)]
    return specs


def _parse_single(target: Any, vocabulary: Vocabulary, unk: str) -> CaptionTargetSpec:
    """Parse a target that is no list."""
    if target is None:
        return CaptionTargetSpec("")
    if isinstance(target, Caption):
        return CaptionTargetSpec(target.text, tuple(target.tokens), ended=target.ended)
    if isinstance(target, (Word, Phrase)):
        phrase = target.phrase if isinstance(target, Word) else target
        words = vocabulary.decode(phrase.tokens)
        if not 0 <= phrase.start < phrase.stop <= len(words):
            raise GradlightError(f"{phrase!r} has no words; caption.phrase(…) and caption.span(…) make phrases.")
        words[phrase.start] = f"[{words[phrase.start]}"
        words[phrase.stop - 1] += "]"
        return CaptionTargetSpec(" ".join(words), phrase.tokens, span=(phrase.start, phrase.stop), ended=phrase.ended)
    if isinstance(target, str) and target.strip():
        return _parse_text(target, vocabulary, unk)
    raise GradlightError(
        f"{target!r} is not a target of a captioner. Give a text, a Caption of model.caption(…), its words, or None for"
        " the caption that it generates."
    )


def _parse_text(text: str, vocabulary: Vocabulary, unk: str) -> CaptionTargetSpec:
    """Parse a text, with one pair of brackets around a phrase or without."""
    if "[" not in text and "]" not in text:
        return CaptionTargetSpec(text, tuple(vocabulary.encode(text, unk)))
    match = re.fullmatch(r"([^\[\]]*)\[([^\[\]]+)\]([^\[\]]*)", text)
    if match is None:
        raise GradlightError(f'{text!r}: one pair of brackets marks the phrase to explain, as in "a [red star] above".')
    inside = vocabulary.encode(match[2], unk)
    before, after = (vocabulary.encode(side, unk) if re.search(r"\w", side) else [] for side in (match[1], match[3]))
    if not before and not after:
        return CaptionTargetSpec(text, phrase=tuple(vocabulary.decode(inside)))
    return CaptionTargetSpec(text, (*before, *inside, *after), span=(len(before), len(before) + len(inside)))
