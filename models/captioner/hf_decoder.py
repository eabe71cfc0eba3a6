"""The captioners of transformers as an eye and a tongue: what differs between them is one row of a table.

The pieces of words that a tokenizer of transformers knows, text brought to them, and they brought to words.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...errors import GradlightError, nearest
from .decoder import Decoder, EndRule, Features, SpecialTokens, State
from .encoder import CaptionNetwork
from .vocabulary import UNKNOWN, Vocabulary

__all__ = ["FAMILIES", "HFDecoder", "HFFamily", "HFNetwork", "SubwordTokenizer", "flat", "settled"]

# What is asked about a caption counts in its words. So one token stands for one word here and is the tuple of its
# pieces' numbers; the records that captioners share call it an int, and none of them looks inside.
Token = tuple[int, ...]


class SubwordTokenizer(Vocabulary):
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
        specials = SpecialTokens(bos, end, None if unk in (bos, end) else unk)
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


_LIMIT = 20
"""The library's own limit where neither the network nor the caller has one."""
_HALVES = (torch.float16, torch.bfloat16)
_FINISHED = EndRule(float("inf"))
"""A beam that has said END is put aside, and another takes its place."""


@dataclass(frozen=True)
class HFFamily:
    """How one kind of network is taken apart.

    kind: its class in transformers. eye: its vision tower, which brings pixels to places [B,N,C]. bridge: what stands
    between the two. parts: what `speak` runs, by name. speak: (parts, what the bridge gives [B,N,D], pieces [B,T], the
    memory of what was said before, or None) to the logits [B,T,V] of the pieces that follow each. talker: the part
    whose settings say how it generates. bos, end: where its configuration holds these numbers, by preference.
    """

    kind: str
    eye: Callable[[Any], nn.Module]
    bridge: Callable[[Any], nn.Module]
    parts: Callable[[Any], Mapping[str, nn.Module]]
    speak: Callable[[nn.ModuleDict, Tensor, Tensor, Any], Tensor]
    talker: Callable[[Any], Any]
    bos: tuple[str, ...]
    end: tuple[str, ...]


class HFDecoder(Decoder):
    """The text decoder of a captioner of transformers: pieces in, the next piece out.

    In its search it keeps the keys and values of what was said; teacher forcing runs it once over the whole.
    """

    def __init__(self, network: Any, family: HFFamily, pieces: SubwordTokenizer) -> None:
        super().__init__(pieces.specials, _limit(family.talker(network)), _FINISHED)
        self.parts = nn.ModuleDict(family.parts(network))
        self.pieces, self.speak = pieces, family.speak

    def start(self, features: Features) -> State:
        """Take the features in; no piece has been said yet."""
        return {"h": features["fc"], "att": features["att"]}

    def advance(self, state: State, tokens: Tensor) -> State:
        """Take one piece [B] of each caption in (BOS is the first); "h" are the logits of the next."""
        memory = _remember(state)
        logits = self.speak(self.parts, state["att"], tokens[:, None], memory)
        return {"h": logits[:, -1], "att": state["att"], **_noted(memory)}

    def predict(self, hidden: Tensor) -> Tensor:
        """Give the log-probabilities [...,V] of logits, float32 at least."""
        return functional.log_softmax(hidden.float() if hidden.dtype in _HALVES else hidden, -1)

    def log_probs(self, features: Features, tokens: Tensor) -> Tensor:
        """Give the log-probabilities [B,T+1,V] that teacher forcing predicts of pieces [B,T], padded with −1."""
        bos = self.specials.bos
        said = functional.pad(tokens.masked_fill(tokens < 0, bos), (1, 0), value=bos)
        return self.predict(self.speak(self.parts, features["att"], said, None))


class HFNetwork(CaptionNetwork):
    """A captioner of transformers: its vision tower as the encoder, its text decoder as the decoder."""

    decoder: HFDecoder

    def __init__(self, network: Any, family: HFFamily, pieces: SubwordTokenizer) -> None:
        super().__init__(family.eye(network), HFDecoder(network, family, pieces))
        self.bridge = family.bridge(network)

    def features(self, pixels: Tensor) -> dict[str, Tensor]:
        """Give what the text decoder reads of pixels [B,3,H,W]: "att" [B,N,D], and "fc" [B,D], its mean."""
        places = self.bridge(self.encoder(pixels)[0])
        return {"fc": places.mean(1), "att": places}


def settled(network: Any, names: tuple[str, ...]) -> int:
    """Find a number in a network's settings; names: where, "generation_config.eos_token_id" for instance.

    Raises GradlightError where none of them holds one.
    """
    for name in names:
        value = network
        for part in name.split("."):
            value = getattr(value, part, None)
        if isinstance(value, (list, tuple)) and value:
            value = value[0]
        if isinstance(value, int):
            return value
    raise GradlightError(
        f"This {type(network).__name__} cannot say captions: none of {', '.join(names)} is set. Set one of them on the"
        " network before."
    )


def _limit(talker: Any) -> int:
    """Tell the most pieces of a caption, END included, that a network says by its own settings."""
    settings = talker.generation_config
    # Its max_length counts BOS.
    return settings.max_new_tokens or max(1, settings.max_length - 1 if settings.max_length else _LIMIT)


def _remember(state: State) -> Any:
    """Make the library's memory of the keys and values in a state: of what was said, and of the image."""
    from transformers import DynamicCache, EncoderDecoderCache

    caches = DynamicCache(), DynamicCache()
    for kind, cache in enumerate(caches):
        layer = 0
        while (name := f"{kind}.{layer}") + ".keys" in state:
            cache.update(state[f"{name}.keys"], state[f"{name}.values"], layer)
            layer += 1
    return EncoderDecoderCache(*caches)


def _noted(memory: Any) -> State:
    """Write the library's memory down, a row for each caption."""
    return {
        f"{kind}.{layer}.{part}": getattr(held, part)
        for kind, cache in enumerate((memory.self_attention_cache, memory.cross_attention_cache))
        for layer, held in enumerate(cache.layers)
        for part in ("keys", "values")
    }


def _handed(part: nn.Module, memory: Any) -> dict[str, Any]:
    """Name the memory as a part of the library calls it: `cache` of late, `past_key_values` before."""
    name = "cache" if "cache" in inspect.signature(part.forward).parameters else "past_key_values"
    return {name: memory}


def _cross(parts: nn.ModuleDict, seen: Tensor, tokens: Tensor, memory: Any) -> Tensor:
    """Run a decoder that reads the image by cross-attention."""
    before = 0 if memory is None else memory.get_seq_length()
    logits: Tensor = parts["text"](
        input_ids=tokens,
        attention_mask=tokens.new_ones(len(tokens), before + tokens.shape[1]),
        encoder_hidden_states=seen,
        use_cache=memory is not None,
        **_handed(parts["text"], memory),
    ).logits
    return logits


def _prefix(parts: nn.ModuleDict, seen: Tensor, tokens: Tensor, memory: Any) -> Tensor:
    """Run a decoder that has the image's places before its pieces: these see all places and the pieces before them."""
    places, count = seen.shape[1], tokens.shape[1]
    cache = None if memory is None else memory.self_attention_cache
    past = 0 if cache is None else cache.get_seq_length()
    said = max(past - places, 0)
    words = parts["embeddings"](tokens, position_ids=torch.arange(said, said + count, device=tokens.device)[None])
    hidden = words if past else torch.cat([seen, words], 1)
    here = torch.arange(past, past + hidden.shape[1], device=seen.device)[:, None]
    there = torch.arange(past + hidden.shape[1], device=seen.device)[None, :]
    unseen = (there > here) & (there >= places)
    mask = torch.zeros(unseen.shape, dtype=hidden.dtype, device=seen.device)
    mask = mask.masked_fill(unseen, torch.finfo(hidden.dtype).min)[None, None]
    encoder = parts["encoder"]
    found = encoder(hidden, attention_mask=mask, use_cache=cache is not None, **_handed(encoder, cache))[0]
    logits: Tensor = parts["output"](found[:, -count:])
    return logits


FAMILIES = {
    "vision-encoder-decoder": HFFamily(
        kind="VisionEncoderDecoderModel",
        eye=lambda network: network.encoder,
        bridge=lambda network: getattr(network, "enc_to_dec_proj", None) or nn.Identity(),
        parts=lambda network: {"text": network.decoder},
        speak=_cross,
        talker=lambda network: network,
        bos=(
            "generation_config.decoder_start_token_id",
            "config.decoder_start_token_id",
            "config.decoder.decoder_start_token_id",
            "generation_config.bos_token_id",
            "config.decoder.bos_token_id",
        ),
        end=("generation_config.eos_token_id", "config.eos_token_id", "config.decoder.eos_token_id"),
    ),
    "blip": HFFamily(
        kind="BlipForConditionalGeneration",
        eye=lambda network: network.vision_model,
        bridge=lambda network: nn.Identity(),
        parts=lambda network: {"text": network.text_decoder},
        speak=_cross,
        talker=lambda network: network.text_decoder,
        bos=("config.text_config.bos_token_id",),
        end=("config.text_config.sep_token_id",),
    ),
    "git": HFFamily(
        kind="GitForCausalLM",
        eye=lambda network: network.git.image_encoder,
        bridge=lambda network: network.git.visual_projection,
        parts=lambda network: {
            "embeddings": network.git.embeddings,
            "encoder": network.git.encoder,
            "output": network.output,
        },
        speak=_prefix,
        talker=lambda network: network,
        bos=("generation_config.bos_token_id", "config.bos_token_id"),
        end=("generation_config.eos_token_id", "config.eos_token_id"),
    ),
}
"""What transformers calls a kind of network in its configuration, and how it is taken apart."""
