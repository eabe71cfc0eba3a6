"""The captioners of transformers as an eye and a tongue: what differs between them is one row of a table."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...errors import GradlightError
from .decoder import Decoder, Features, State
from .network import CaptionNetwork
from .pieces import Pieces
from .search import Finishing

__all__ = ["FAMILIES", "Family", "HubNetwork", "Tongue", "settled"]

_LIMIT = 20
"""The library's own limit where neither the network nor the caller has one."""
_HALVES = (torch.float16, torch.bfloat16)
_FINISHED = Finishing(float("inf"))
"""A beam that has said END is put aside, and another takes its place."""


@dataclass(frozen=True)
class Family:
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


class Tongue(Decoder):
    """The text decoder of a captioner of transformers: pieces in, the next piece out.

    In its search it keeps the keys and values of what was said; teacher forcing runs it once over the whole.
    """

    def __init__(self, network: Any, family: Family, pieces: Pieces) -> None:
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


class HubNetwork(CaptionNetwork):
    """A captioner of transformers: its vision tower as the encoder, its text decoder as the decoder."""

    decoder: Tongue

    def __init__(self, network: Any, family: Family, pieces: Pieces) -> None:
        super().__init__(family.eye(network), Tongue(network, family, pieces))
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
    "vision-encoder-decoder": Family(
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
    "blip": Family(
        kind="BlipForConditionalGeneration",
        eye=lambda network: network.vision_model,
        bridge=lambda network: nn.Identity(),
        parts=lambda network: {"text": network.text_decoder},
        speak=_cross,
        talker=lambda network: network.text_decoder,
        bos=("config.text_config.bos_token_id",),
        end=("config.text_config.sep_token_id",),
    ),
    "git": Family(
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
