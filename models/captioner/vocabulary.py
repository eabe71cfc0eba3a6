"""The vocabulary of a captioner: texts are split into words, words become token numbers, and numbers become words.

The decoders of transformers predict subword tokens. There one token of a caption stands for one word, and is the tuple
of its subword numbers. The records that all captioners share (`Hypothesis`, `Phrase`, `Caption`) type it as an int, and
never look into it:

    text          "a starfish above"
    subwords      [4, 9, 17, 6]               of the tokenizer
    tokens        [(4,), (9, 17), (6,)]       one per word

Words end at blanks of the decoded text. In writing without blanks, such as Chinese, each subword token is a word of its
own (with byte tokens joined to whole characters). A phrase in brackets may begin or end inside a word, at the border of
two subword tokens: that word is then cut in two.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, cast

import torch
from nltk.tokenize import TreebankWordTokenizer
from torch import Tensor

from ...errors import GradlightError, nearest
from .decoder import PADDING, SpecialTokens

__all__ = [
    "UNKNOWN",
    "SubwordTokenizer",
    "Vocabulary",
    "build_vocabulary",
    "encode_captions",
    "flatten_tokens",
    "tokenize",
]

UNKNOWN = ("error", "allow")
"""What `unk=` accepts for a word that is not in the vocabulary: an error, or UNK in its place."""

_MAX_LISTED = 5
_START_AND_END = 0
_UNK = "UNK"

WordToken = tuple[int, ...]
"""The subword numbers of one word."""

_WITHOUT_BLANKS = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]"
)
"""Characters of Thai, Lao, Tibetan, Burmese, Khmer, Japanese and Chinese, which are written without blanks."""
_REPLACEMENT = "\ufffd"
"""What a tokenizer decodes bytes to that are no whole character."""


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


# --- Subword tokens and words


class SubwordTokenizer(Vocabulary):
    """A subword tokenizer of transformers, with the interface of a vocabulary of words.

    Every token that it takes or returns is one word: a tuple of subword numbers.

    Args:
        tokenizer: the tokenizer of the library.
        bos: the number of the token before the first word.
        end: the number of the token that ends a caption.
        max_subwords: the maximal number of subwords of a caption.

    Raises:
        GradlightError: if the tokenizer has only special tokens, or does not have END.
    """

    def __init__(self, tokenizer: Any, bos: int, end: int, max_subwords: int) -> None:
        numbers = tokenizer.get_vocab()
        # Where its files are missing, the library makes a tokenizer that has only special tokens.
        if end not in numbers.values() or numbers.keys() <= {*tokenizer.all_special_tokens}:
            raise GradlightError(
                f"This tokenizer has {len(numbers)} subword tokens and is not that of this network, whose captions"
                f" end with number {end}. Give tokenizer= the one that the network was trained with."
            )
        unk = tokenizer.unk_token_id
        # Some tokenizers that can encode every text use END as the unknown token as well.
        special_tokens = SpecialTokens(bos, end, None if unk in (bos, end) else unk)
        super().__init__({number: subword for subword, number in numbers.items()}, special_tokens)
        self.tokenizer, self.max_subwords = tokenizer, max_subwords

    def group_words(self, subwords: Sequence[int]) -> tuple[int, ...]:
        """Group subword numbers into tokens, one per word."""
        words = tuple(tuple(subwords[start:stop]) for start, stop in self._split_words(subwords))
        return cast("tuple[int, ...]", words)

    def decode(self, tokens: Iterable[int]) -> list[str]:
        """Return the words of tokens, as the tokenizer decodes them one after another."""
        words = cast("list[WordToken]", list(tokens))
        stops = [sum(map(len, words[: count + 1])) for count in range(len(words))]
        return self._texts(flatten_tokens(cast("list[int]", words)), [0, *stops])

    def encode(self, text: str | Sequence[str], unk: str = "error") -> list[int]:
        """Return the tokens of a text, or of words joined by blanks.

        Args:
            text: a text, or a list of words.
            unk: "allow" takes UNK for what the tokenizer has no subwords for; "error" refuses it.

        Returns:
            One token per word.

        Raises:
            GradlightError: for an unknown word, with the nearest words of the vocabulary, for a text without words, and
                for a text that is too long.
        """
        if unk not in UNKNOWN:
            raise GradlightError(f'unk={unk!r} is unknown; give "error" or "allow".{nearest(str(unk), UNKNOWN)}')
        text = text if isinstance(text, str) else " ".join(text)
        return list(self.group_words(self._encode_subwords(text, unk)[0]))

    def encode_phrase(self, before: str, phrase: str, after: str, unk: str = "error") -> tuple[list[int], int, int]:
        """Return the tokens of a text and where a phrase of it lies, by the tokenizer's own offsets.

        Args:
            before: the text before the phrase.
            phrase: the phrase; blanks at its ends do not count.
            after: the text behind it.
            unk: as for `encode`.

        Returns:
            One token per word, the first word of the phrase, and the word behind its last one.

        Raises:
            GradlightError: as `encode` does; where a subword token lies across an end of the phrase; and where it is
                not known which characters the subword tokens stand for.
        """
        text = before + phrase + after
        subwords, offsets = self._encode_subwords(text, unk)
        first = len(before) + len(phrase) - len(phrase.lstrip())
        last = len(before) + len(phrase.rstrip())
        blank = [not text[start:stop].strip() for start, stop in offsets]
        inside = [at for at, (start, stop) in enumerate(offsets) if not blank[at] and start < last and stop > first]
        if not inside:
            raise GradlightError(
                f"The tokenizer reads nothing in [{phrase}] of {text!r}, so there is nothing to explain."
            )
        for start, stop in (offsets[at] for at in inside):
            start, stop = start + len(text[start:stop]) - len(text[start:stop].lstrip()), len(text[:stop].rstrip())
            if start < first or stop > last:
                raise GradlightError(
                    f"The brackets around {phrase!r} cut through {text[start:stop]!r}, which is one subword token of"
                    f" this captioner. Put all of {text[start:stop]!r} in the brackets, or none of it."
                )
        begin, end = inside[0], inside[-1] + 1
        while end < len(subwords) and blank[end]:  # a blank of its own belongs to the word before it
            end += 1
        starts = [start for start, _ in self._split_words(subwords)]
        cuts = sorted({*starts, begin, end, len(subwords)})
        tokens = [tuple(subwords[start:stop]) for start, stop in pairwise(cuts)]
        return cast("list[int]", tokens), cuts.index(begin), cuts.index(end)

    def _encode_subwords(self, text: str, unk: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the subwords of a text and the characters (start, stop) that each stands for."""
        is_fast = bool(getattr(self.tokenizer, "is_fast", False))
        options = {"return_offsets_mapping": True} if is_fast else {}
        encoded = self.tokenizer(text, add_special_tokens=False, **options)
        subwords: list[int] = encoded["input_ids"]
        if not subwords or not self._decode_subwords(subwords).strip():
            raise GradlightError(f"There is no word in {text!r}, so there is nothing to explain.")
        if len(subwords) > self.max_subwords:
            raise GradlightError(
                f"{text[:40]!r}… has {len(subwords)} subword tokens, and this captioner reads {self.max_subwords} at"
                " most."
            )
        if unk == "error" and self.special_tokens.unk in subwords:
            raise GradlightError(self._format_unknown(list(self._unknown_words(text)), unk))
        return subwords, [*encoded["offset_mapping"]] if is_fast else self._align(text, subwords)

    def _unknown_words(self, text: str) -> Iterator[str]:
        """List the words of a text that the tokenizer has no subwords for."""
        for word in dict.fromkeys(text.split()):
            if self.special_tokens.unk in self.tokenizer(word, add_special_tokens=False)["input_ids"]:
                yield word

    def _split_words(self, subwords: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Split subwords where their decoded text has blanks: the first subword of each word, and the one behind it."""
        counts = [len(self._decode_subwords(subwords[:stop]).split()) for stop in range(1, len(subwords) + 1)]
        starts = [at for at, count in enumerate(counts) if at == 0 or count > counts[at - 1] > 0]
        for start, stop in zip(starts, [*starts, len(subwords)][1:], strict=True):
            if _WITHOUT_BLANKS.search(self._decode_subwords(subwords[start:stop])):
                yield from self._split_characters(subwords, start, stop)
            else:
                yield start, stop

    def _split_characters(self, subwords: Sequence[int], start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Split the subwords start … stop wherever whole characters end."""
        begin = start
        for end in range(start + 1, stop):
            text, rest = self._decode_subwords(subwords[begin:end]), self._decode_subwords(subwords[end:stop])
            if text.strip() and rest.strip() and _REPLACEMENT not in text + rest[:1]:
                yield begin, end
                begin = end
        yield begin, stop

    def _texts(self, subwords: Sequence[int], cuts: Sequence[int]) -> list[str]:
        """Return the text between each two cuts, as it is decoded behind the text before."""
        decoded = [self._decode_subwords(subwords[:cut]) for cut in cuts]
        texts = []
        for (start, stop), (before, through) in zip(pairwise(cuts), pairwise(decoded), strict=True):
            own = through.removeprefix(before) if through.startswith(before) else None
            text = self._decode_subwords(subwords[start:stop]) if own is None else own
            texts.append(" ".join(text.split()))
        return texts

    def _align(self, text: str, subwords: Sequence[int]) -> list[tuple[int, int]]:
        """Find the characters of each subword by comparing the text with what the tokenizer decodes.

        For tokenizers that give no offsets. Blanks, case and accents make no difference.

        Raises:
            GradlightError: where the two differ.
        """
        places = [at for at, character in enumerate(text) if not character.isspace()]
        wanted = [_plain_letter(text[at]) for at in places]
        offsets, done, waiting = [], 0, 0
        for count in range(1, len(subwords) + 1):
            decoded = [_plain_letter(letter) for letter in "".join(self._decode_subwords(subwords[:count]).split())]
            waiting += 1
            if decoded != wanted[: len(decoded)] and count < len(subwords) and _REPLACEMENT in decoded:
                continue  # the bytes of one character are not complete
            if decoded != wanted[: len(decoded)] or len(decoded) < done:
                raise GradlightError(
                    f"It is not known where the subword tokens of {text!r} lie: this tokenizer gives no offsets, and"
                    f" decodes its tokens to {self._decode_subwords(subwords)!r}. Write the text as it is decoded."
                )
            span = (places[done], places[len(decoded) - 1] + 1) if len(decoded) > done else (0, 0)
            offsets += [span] * waiting
            done, waiting = len(decoded), 0
        return offsets

    def _decode_subwords(self, subwords: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(subwords), clean_up_tokenization_spaces=False)
        return text


def _plain_letter(letter: str) -> str:
    """Return a character without its case and accents."""
    bare = "".join(part for part in unicodedata.normalize("NFKD", letter) if not unicodedata.combining(part))
    return bare.casefold() or letter


def flatten_tokens(tokens: Iterable[int]) -> list[int]:
    """Return the subword numbers of tokens, one after another.

    Example:
        >>> flatten_tokens([(4,), (9, 17)])
        [4, 9, 17]
    """
    return [subword for word in cast("Iterable[WordToken]", tokens) for subword in word]
