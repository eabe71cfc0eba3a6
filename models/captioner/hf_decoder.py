"""The captioners of transformers as encoder and decoder: one table row per family.

The tokens of their captions are tuples of subword numbers (`vocabulary.SubwordTokenizer`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...errors import GradlightError
from .decoder import Decoder, EndRule, Features, State
from .encoder import CaptionNetwork
from .vocabulary import SubwordTokenizer, flatten_tokens

__all__ = ["FAMILIES", "HFDecoder", "HFFamily", "HFNetwork", "SubwordTokenizer", "flatten_tokens", "read_setting"]

_DEFAULT_LIMIT = 20
"""The library's own limit where neither the network nor the caller has one."""
_HALF_PRECISION = (torch.float16, torch.bfloat16)
_END_RULE = EndRule(float("inf"))
"""An ended beam is set aside, and another beam replaces it."""


# --- Encoder and decoder of a network


@dataclass(frozen=True)
class HFFamily:
    """How a kind of network is split into encoder and decoder.

    Args:
        kind: its class in transformers.
        encoder: its vision tower, which maps pixels to [B,N,C].
        bridge: the projection from the encoder's features to the decoder's [B,N,D].
        text_modules: the modules that `run_decoder` calls, by name.
        run_decoder: (modules, image features [B,N,D], subwords [B,T], key/value cache or None) → the logits [B,T,V] of
            the subword that follows each.
        generator: the module whose settings say how it generates.
        bos: where the configuration has the number of BOS, by preference.
        end: where the configuration has the number of END, by preference.
    """

    kind: str
    encoder: Callable[[Any], nn.Module]
    bridge: Callable[[Any], nn.Module]
    text_modules: Callable[[Any], Mapping[str, nn.Module]]
    run_decoder: Callable[[nn.ModuleDict, Tensor, Tensor, Any], Tensor]
    generator: Callable[[Any], Any]
    bos: tuple[str, ...]
    end: tuple[str, ...]


class HFDecoder(Decoder):
    """The text decoder of a captioner of transformers; its tokens are subword numbers.

    In a search it caches the keys and values of the subwords before; under teacher forcing it runs once over all.

    Args:
        network: the network of transformers.
        family: how it is split.
        tokenizer: its subword tokenizer.
    """

    def __init__(self, network: Any, family: HFFamily, tokenizer: SubwordTokenizer) -> None:
        super().__init__(tokenizer.special_tokens, _max_length(family.generator(network)), _END_RULE)
        # The names `parts` and `bridge` are in the keys of the state dict, and so in the weights' fingerprint.
        self.parts = nn.ModuleDict(family.text_modules(network))
        self.tokenizer, self.run_decoder = tokenizer, family.run_decoder
        self.settings = family.generator(network).generation_config

    def start(self, features: Features) -> State:
        """Read the features; the returned state has seen no subword."""
        return {"h": features["fc"], "att": features["att"]}

    def advance(self, state: State, tokens: Tensor) -> State:
        """Read one subword [B] of each caption (the first is BOS); "h" are the logits of the next."""
        cache = _restore_cache(state)
        logits = self.run_decoder(self.parts, state["att"], tokens[:, None], cache)
        return {"h": logits[:, -1], "att": state["att"], **_cache_state(cache)}

    def predict(self, hidden: Tensor) -> Tensor:
        """Return the log-probabilities [...,V] of logits, at least float32."""
        return functional.log_softmax(hidden.float() if hidden.dtype in _HALF_PRECISION else hidden, -1)

    def log_probs(self, features: Features, tokens: Tensor) -> Tensor:
        """Return the log-probabilities [B,T+1,V] of subwords [B,T], padded with −1, under teacher forcing."""
        bos = self.special_tokens.bos
        inputs = functional.pad(tokens.masked_fill(tokens < 0, bos), (1, 0), value=bos)
        return self.predict(self.run_decoder(self.parts, features["att"], inputs, None))


class HFNetwork(CaptionNetwork):
    """A captioner of transformers: its vision tower as the encoder, its text decoder as the decoder.

    Args:
        network: the network of transformers.
        family: how it is split.
        tokenizer: its subword tokenizer.
    """

    decoder: HFDecoder

    def __init__(self, network: Any, family: HFFamily, tokenizer: SubwordTokenizer) -> None:
        super().__init__(family.encoder(network), HFDecoder(network, family, tokenizer))
        self.bridge = family.bridge(network)

    def features(self, pixels: Tensor) -> dict[str, Tensor]:
        """Compute the text decoder's input of pixels [B,3,H,W]: "att" [B,N,D], and "fc" [B,D], its mean."""
        locations = self.bridge(self.encoder(pixels)[0])
        return {"fc": locations.mean(1), "att": locations}


def read_setting(network: Any, names: tuple[str, ...]) -> int:
    """Read a number from a network's settings.

    Args:
        network: the network of transformers.
        names: where the number may be, by preference, such as "generation_config.eos_token_id".

    Returns:
        The first number that is set; of a list its first element.

    Raises:
        GradlightError: if none of them is set.
    """
    for name in names:
        value = network
        for attribute in name.split("."):
            value = getattr(value, attribute, None)
        if isinstance(value, (list, tuple)) and value:
            value = value[0]
        if isinstance(value, int):
            return value
    raise GradlightError(
        f"This {type(network).__name__} cannot generate captions: none of {', '.join(names)} is set. Set one of them on"
        " the network before."
    )


def _max_length(generator: Any) -> int:
    """Return the maximal number of subwords of a caption, END included, by the network's own settings."""
    settings = generator.generation_config
    # Its max_length counts BOS.
    return settings.max_new_tokens or max(1, settings.max_length - 1 if settings.max_length else _DEFAULT_LIMIT)


# --- The key/value cache, as rows of the decoder's state


def _restore_cache(state: State) -> Any:
    """Make the library's cache of the keys and values in a state: of the subwords before, and of the image."""
    from transformers import DynamicCache, EncoderDecoderCache

    caches = DynamicCache(), DynamicCache()
    for kind, cache in enumerate(caches):
        layer = 0
        while (name := f"{kind}.{layer}") + ".keys" in state:
            cache.update(state[f"{name}.keys"], state[f"{name}.values"], layer)
            layer += 1
    return EncoderDecoderCache(*caches)


def _cache_state(cache: Any) -> State:
    """Return the library's cache as tensors of the state, one row per caption."""
    return {
        f"{kind}.{number}.{name}": getattr(layer, name)
        for kind, half in enumerate((cache.self_attention_cache, cache.cross_attention_cache))
        for number, layer in enumerate(half.layers)
        for name in ("keys", "values")
    }


def _cache_argument(module: nn.Module, cache: Any) -> dict[str, Any]:
    """Return the cache as a keyword argument: `cache` in recent versions of the library, `past_key_values` before."""
    name = "cache" if "cache" in inspect.signature(module.forward).parameters else "past_key_values"
    return {name: cache}


# --- The kinds of decoders, and the table of families


def _run_cross_attention(modules: nn.ModuleDict, features: Tensor, tokens: Tensor, cache: Any) -> Tensor:
    """Run a decoder that reads the image by cross-attention."""
    past = 0 if cache is None else cache.get_seq_length()
    logits: Tensor = modules["text"](
        input_ids=tokens,
        attention_mask=tokens.new_ones(len(tokens), past + tokens.shape[1]),
        encoder_hidden_states=features,
        use_cache=cache is not None,
        **_cache_argument(modules["text"], cache),
    ).logits
    return logits


def _run_prefix(modules: nn.ModuleDict, features: Tensor, tokens: Tensor, cache: Any) -> Tensor:
    """Run a decoder whose input is the image's locations, then the subwords.

    A subword attends to all locations, to the subwords before it, and to itself; a location attends to all locations.
    """
    locations, count = features.shape[1], tokens.shape[1]
    self_cache = None if cache is None else cache.self_attention_cache
    past = 0 if self_cache is None else self_cache.get_seq_length()
    first = max(past - locations, 0)
    positions = torch.arange(first, first + count, device=tokens.device)[None]
    subwords = modules["embeddings"](tokens, position_ids=positions)
    inputs = subwords if past else torch.cat([features, subwords], 1)
    queries = torch.arange(past, past + inputs.shape[1], device=features.device)[:, None]
    keys = torch.arange(past + inputs.shape[1], device=features.device)[None, :]
    hidden = (keys > queries) & (keys >= locations)
    mask = torch.zeros(hidden.shape, dtype=inputs.dtype, device=features.device)
    mask = mask.masked_fill(hidden, torch.finfo(inputs.dtype).min)[None, None]
    encoder = modules["encoder"]
    cache_argument = _cache_argument(encoder, self_cache)
    outputs = encoder(inputs, attention_mask=mask, use_cache=self_cache is not None, **cache_argument)[0]
    logits: Tensor = modules["output"](outputs[:, -count:])
    return logits


FAMILIES = {
    "vision-encoder-decoder": HFFamily(
        kind="VisionEncoderDecoderModel",
        encoder=lambda network: network.encoder,
        bridge=lambda network: getattr(network, "enc_to_dec_proj", None) or nn.Identity(),
        text_modules=lambda network: {"text": network.decoder},
        run_decoder=_run_cross_attention,
        generator=lambda network: network,
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
        encoder=lambda network: network.vision_model,
        bridge=lambda network: nn.Identity(),
        text_modules=lambda network: {"text": network.text_decoder},
        run_decoder=_run_cross_attention,
        generator=lambda network: network.text_decoder,
        bos=("config.text_config.bos_token_id",),
        end=("config.text_config.sep_token_id",),
    ),
    "git": HFFamily(
        kind="GitForCausalLM",
        encoder=lambda network: network.git.image_encoder,
        bridge=lambda network: network.git.visual_projection,
        text_modules=lambda network: {
            "embeddings": network.git.embeddings,
            "encoder": network.git.encoder,
            "output": network.output,
        },
        run_decoder=_run_prefix,
        generator=lambda network: network,
        bos=("generation_config.bos_token_id", "config.bos_token_id"),
        end=("generation_config.eos_token_id", "config.eos_token_id"),
    ),
}
"""How each kind of network is split, by its `model_type` in transformers."""
