"""Captions of transformers' captioners are those of the network's own generate(), with its generation_config."""

from __future__ import annotations

from typing import Any

import hub_networks as hub
import pytest

import gradlight as gl
from gradlight.errors import GradlightWarning
from gradlight.models.captioner.vocabulary import flatten_tokens

PHOTOS = hub.photos((40, 30), (32, 32), (50, 70), (33, 64), (64, 64), (20, 20))
SETTINGS: dict[str, dict[str, Any]] = {
    "none": {},
    "long": {"length_penalty": 2.0},
    "short": {"length_penalty": -1.0},
    "no penalty": {"length_penalty": 0.0},
    "no repetition": {"no_repeat_ngram_size": 2, "max_length": 12},
    "repetition costs": {"repetition_penalty": 1.6},
    "at least": {"min_length": 7},
    "one word once": {"no_repeat_ngram_size": 1, "max_new_tokens": 7},
    "forced start": {"forced_bos_token_id": 9, "remove_invalid_values": True, "max_new_tokens": 7},
    "an end that nears": {"exponential_decay_length_penalty": (2, 1.5), "max_new_tokens": 9},
    "at least new": {"min_new_tokens": 5, "max_new_tokens": 8},
    "at most": {"max_length": 5},
    "at most new": {"max_new_tokens": 4},
    "bad words": {"bad_words_ids": [[4], [5, 6]], "max_new_tokens": 9},
    "suppressed": {"suppress_tokens": [7, 8], "begin_suppress_tokens": [hub.END], "max_new_tokens": 9},
    "forced end": {"forced_eos_token_id": hub.END, "max_new_tokens": 6},
    "stops early": {"early_stopping": True, "length_penalty": 0.5},
    "never stops early": {"early_stopping": "never", "length_penalty": 1.5, "max_new_tokens": 10},
}


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default")
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("family", hub.CAPTIONERS)
def test_captions_are_those_of_generate(family: str, setting: str, beams: int) -> None:
    network = hub.captioner_of(family)
    generator = network.text_decoder if family == "blip" else network
    for name, value in SETTINGS[setting].items():
        setattr(generator.generation_config, name, value)
    model = gl.captioner(network, tokenizer=hub.tokenizer(), device="cpu")
    wanted = network.generate(pixel_values=model.pixels(PHOTOS), do_sample=False, num_beams=beams)
    for caption, row in zip(model.caption(PHOTOS, beam_size=beams), wanted.tolist(), strict=True):
        said = row[1:]
        assert flatten_tokens(caption.tokens) == (said[: said.index(hub.END)] if hub.END in said else said)


def test_a_setting_that_is_not_followed_is_named() -> None:
    network = hub.captioner_of("git")
    network.generation_config.do_sample, network.generation_config.top_k = True, 5
    model = gl.captioner(network, tokenizer=hub.tokenizer(), device="cpu")
    with pytest.warns(GradlightWarning, match=r"do_sample of its generation_config cannot be followed"):
        model.caption(PHOTOS[:1])
