"""Small networks of transformers with random weights, and a tokenizer for them: nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordPiece
from torch import nn
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipTextConfig,
    BlipVisionConfig,
    GitConfig,
    GitForCausalLM,
    GPT2Config,
    PreTrainedTokenizerFast,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessor,
)

WORDS = ["a", "red", "blue", "star", "ring", "above", "below", "and", "small", "large"]
SPECIALS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
SUBWORDS = {word: number for number, word in enumerate([*SPECIALS, *WORDS, "##s", "##ish", "##let"])}
PAD, BOS, END, UNK = range(4)
SIDE = 32
_VISION = {
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": SIDE,
    "patch_size": 8,
}
_TEXT = {
    "vocab_size": len(SUBWORDS),
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
    "bos_token_id": BOS,
    "eos_token_id": END,
    "pad_token_id": PAD,
}


def tokenizer() -> Any:
    """Make a tokenizer of a few words, which can have endings."""
    inner = Tokenizer(WordPiece(SUBWORDS, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.decoder = decoders.WordPiece(cleanup=False)
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIALS, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=inner, **names)


def vit_gpt2() -> Any:
    text = GPT2Config(
        vocab_size=len(SUBWORDS),
        n_positions=32,
        n_embd=24,
        n_layer=2,
        n_head=2,
        add_cross_attention=True,
        is_decoder=True,
        bos_token_id=BOS,
        eos_token_id=END,
        pad_token_id=PAD,
    )
    network = VisionEncoderDecoderModel(
        VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(**_VISION), text)
    )
    for name, number in (("decoder_start_token_id", BOS), ("eos_token_id", END), ("pad_token_id", PAD)):
        setattr(network.generation_config, name, number)
    return network


def blip() -> Any:
    text = BlipTextConfig(**_TEXT, sep_token_id=END, encoder_hidden_size=16, projection_dim=16)
    vision = BlipVisionConfig(**_VISION, projection_dim=16)
    return BlipForConditionalGeneration(BlipConfig(text_config=text.to_dict(), vision_config=vision.to_dict()))


def git() -> Any:
    return GitForCausalLM(GitConfig(vision_config=_VISION, **_TEXT))


CAPTIONERS = {"vit-gpt2": vit_gpt2, "blip": blip, "git": git}


def spread(network: nn.Module, seed: int = 3) -> Any:
    """Give a network weights that make it say something else at every step, and of every image."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.35, generator=generator)
    return network.eval()


def captioner_of(family: str) -> Any:
    torch.manual_seed(0)
    return spread(CAPTIONERS[family]())


def saved(family: str, folder: Path) -> tuple[Any, Path]:
    """Write a captioner of a family with its tokenizer and image processor into a folder."""
    network = captioner_of(family)
    for part in (network, tokenizer(), ViTImageProcessor(size={"height": SIDE, "width": SIDE})):
        part.save_pretrained(folder)
    return network, folder


def photos(*sizes: tuple[int, int]) -> list[Image.Image]:
    """Make pictures of noise of some sizes (width, height)."""
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in sizes]
