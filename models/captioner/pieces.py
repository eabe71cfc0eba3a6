"""The pieces of words that a tokenizer of transformers knows, text brought to them, and they brought to words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

from ...errors import GradlightError, nearest
from .decoder import Specials
from .vocabulary import UNKNOWN, Vocabulary

__all__ = ["Pieces", "flat"]

# What is asked about a caption counts in its words. So one token stands for one word here and is the tuple of its
# pieces' numbers; the records that captioners share call it an int, and none of them looks inside.
Token = tuple[int, ...]


class Pieces(Vocabulary):
    """The pieces of a tokenizer, behind the interface of a vocabulary of whole words.

    Every token that it gives or takes is one word: a tuple of its pieces' numbers. most: the most pieces that a
    caption may have. Raises GradlightError for a tokenizer that knows no words, or does not know END.
    """

    def __init__(self, tokenizer: Any, bos: int, end: int, most: int) -> None:
        known = tokenizer.get_vocab()
        # Where there are no files of one, the library makes a tokenizer of special tokens alone.
        if end not in known.values() or known.keys() <= {*tokenizer.all_special_tokens}:
            raise GradlightError(
                f"This tokenizer knows {len(known)} pieces of words, and is not that of this network, whose captions"
                f" end with number {end}. Give tokenizer= the one that the network was trained with."
            )
        unk = tokenizer.unk_token_id
        # Some tokenizers that know every text have END stand for the unknown as well.
        specials = Specials(bos, end, None if unk in (bos, end) else unk)
        super().__init__({number: piece for piece, number in known.items()}, specials)
        self.tokenizer, self.most = tokenizer, most

    def grouped(self, pieces: Sequence[int]) -> tuple[int, ...]:
        """Bring pieces to tokens, each of them one word."""
        return cast("tuple[int, ...]", tuple(word for word, _ in self._words(pieces)))

    def decode(self, tokens: Iterable[int]) -> list[str]:
        """Give the words of tokens, as the tokenizer writes them one after another."""
        tokens = tuple(tokens)
        texts = [text for _, text in self._words(flat(tokens))]
        # Pieces that were grouped in another context may be written together here.
        return texts if len(texts) == len(tokens) else [self._text(flat([token])).strip() for token in tokens]

    def encode(self, text: str | Sequence[str], unk: str = "error") -> list[int]:
        """Give the tokens of a text, or of words joined by blanks.

        unk: "allow" takes UNK for what the tokenizer has no pieces for. Raises GradlightError, with the nearest known
        words, for such a word otherwise, for a text without any word, and for one that is too long.
        """
        if unk not in UNKNOWN:
            raise GradlightError(f'unk={unk!r} is unknown; give "error" or "allow".{nearest(str(unk), UNKNOWN)}')
        text = text if isinstance(text, str) else " ".join(text)
        pieces = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if not pieces or not self._text(pieces).strip():
            raise GradlightError(f"There is no word in {text!r}, so there is nothing to ask about.")
        if len(pieces) > self.most:
            raise GradlightError(
                f"{text[:40]!r}… has {len(pieces)} pieces of words, and this captioner reads {self.most} at most."
            )
        if unk == "error" and self.specials.unk in pieces:
            raise GradlightError(self._refusal(list(self._unknown(text)), unk))
        return list(self.grouped(pieces))

    def _unknown(self, text: str) -> Iterator[str]:
        """List the words of a text that the tokenizer has no pieces for."""
        for word in dict.fromkeys(text.split()):
            if self.specials.unk in self.tokenizer(word, add_special_tokens=False)["input_ids"]:
                yield word

    def _words(self, pieces: Sequence[int]) -> Iterator[tuple[Token, str]]:
        """Divide pieces where the text that they make has blanks: the pieces of each word, and its text."""
        counts = [len(self._text(pieces[:stop]).split()) for stop in range(1, len(pieces) + 1)]
        texts = self._text(pieces).split()
        starts = [at for at, count in enumerate(counts) if at == 0 or count > counts[at - 1] > 0]
        for start, stop in zip(starts, [*starts, len(pieces)][1:], strict=True):
            before = counts[start - 1] if start else 0
            yield tuple(pieces[start:stop]), " ".join(texts[before : counts[stop - 1]])

    def _text(self, pieces: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(pieces), clean_up_tokenization_spaces=False)
        return text


def flat(tokens: Iterable[int]) -> list[int]:
    """Give the pieces of tokens, one after another."""
    return [piece for word in cast("Iterable[Token]", tokens) for piece in word]
