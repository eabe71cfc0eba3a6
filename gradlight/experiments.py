"""What `evaluate` does: an experiment, its table on standard output, its figures as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .commands import listed
from .console import interactive
from .data.scenes import HELD_OUT
from .errors import GradlightError, nearest
from .evaluation.caption_truth import caption_truth
from .evaluation.word_pointing import own_captions, word_pointing
from .opening import Source, open_captioner

__all__ = ["Options", "evaluate"]


@dataclass(frozen=True)
class Options:
    """The options of an experiment, as they were typed."""

    count: int
    methods: str
    layers: str


def evaluate(experiment: str, source: Source, options: Options, output: Path | None) -> None:
    """Run an experiment and print its table as Markdown; output: a JSON file of its figures."""
    name = experiment.replace("-", "_")
    if name not in _EXPERIMENTS:
        known = ", ".join(_EXPERIMENTS)
        raise GradlightError(f"There is no experiment {experiment!r}.{nearest(name, _EXPERIMENTS)} Known: {known}.")
    if output is not None and not output.absolute().parent.is_dir():
        raise GradlightError(f"{output}: the folder {output.absolute().parent} does not exist. Create it first.")
    lines, figures = _EXPERIMENTS[name](source, options)
    print("\n".join(lines))
    if output is not None:
        output.write_text(json.dumps({"experiment": name, "model": source.name, **figures}, indent=1) + "\n")


def _caption_truth(source: Source, options: Options) -> tuple[list[str], dict[str, Any]]:
    found = caption_truth(open_captioner(source), HELD_OUT[: options.count], progress=interactive())
    scores = {"true": found.share, **found.bleu}
    lines = _table(["scenes", *scores], [[str(found.count), f"{found.share:.2%}", *_rounded(found.bleu.values())]])
    lines += ["", "Some of the false ones:", *(f"- seed {seed}: {text}" for seed, text in found.false)]
    return lines if found.false else lines[:3], {"scenes": found.count, **scores}


def _word_pointing(source: Source, options: Options) -> tuple[list[str], dict[str, Any]]:
    model = open_captioner(source)
    hits = word_pointing(
        model,
        HELD_OUT[: options.count],
        listed(options.methods),
        listed(options.layers),
        speaker=own_captions(model),
        progress=interactive(),
    )
    exact = {key: each.exact / each.asked for key, each in hits.items()}
    near = {key: each.near / each.asked for key, each in hits.items()}
    methods = list(dict.fromkeys(method for method, _ in hits if method != "baseline"))
    layers = list(dict.fromkeys(layer for method, layer in hits if method != "baseline"))
    best = max((key for key in hits if key[0] != "baseline"), key=lambda key: (near[key], exact[key]))
    rows = [
        [layer, *(f"{_bold(near[m, layer], (m, layer) == best)} ({exact[m, layer]:.1%})" for m in methods)]
        for layer in layers
    ]
    words = next(iter(hits.values())).asked
    lines = _table(["within 15 px (on the object)", *methods], rows)
    points = (f"{name}: {near['baseline', name]:.1%} ({exact['baseline', name]:.1%})" for name in ("centre", "random"))
    lines += ["", f"{words} words of its true captions of {options.count} scenes. With no map: {', '.join(points)}."]
    figures = {" / ".join(key): {"within 15 px": near[key], "on the object": exact[key]} for key in hits}
    return lines, {"words": words, "hits": figures}


_EXPERIMENTS: dict[str, Callable[[Source, Options], tuple[list[str], dict[str, Any]]]] = {
    "caption_truth": _caption_truth,
    "word_pointing": _word_pointing,
}


def _bold(share: float, best: bool) -> str:
    return f"**{share:.1%}**" if best else f"{share:.1%}"


def _rounded(values: Any) -> list[str]:
    return [f"{value:.3f}" for value in values]


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [headings, ["---"] * len(headings), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]
