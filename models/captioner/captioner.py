"""Captioners: the bundled one, a checkpoint of a known project, or a network of one's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ...errors import GradlightError
from ..base import Explainable, ImageLike, Photo, as_list
from ..checkpoints import PathLike
from ..huggingface import is_hub_source
from ..images import read_images, read_pixels
from ..measured_preprocessing import MeasuredPreprocessing
from ..preprocessing import OriginalSize, Preprocess
from ..preserve import Device, preserved, to_device
from ..registry import SOURCES
from .checkpoints import Checkpoint, find_encoder, read_checkpoint
from .decoder import step_log_probs
from .encoder import CaptionNetwork
from .objective import CaptionObjective
from .search import DecodingOptions, Hypothesis
from .targets import Caption, Word, parse, word_by_word
from .vocabulary import UNKNOWN, Vocabulary

__all__ = ["Captioner", "captioner"]

_AT_ONCE = 16
_PROBE = 64


class Captioner(Explainable):
    """A network that says a sentence about an image.

    unk: what is done with words of a target that it does not know: "error" or "allow" (UNK in their place). count_end:
    whether END counts in the log-probability of a caption. saying: how it makes the caption that target=None asks of.
    record: what `describe` says of its origin.
    """

    network: CaptionNetwork

    def __init__(
        self,
        network: CaptionNetwork,
        vocabulary: Vocabulary,
        preprocess: Preprocess,
        *,
        name: str = "captioner",
        unk: str = "error",
        count_end: bool = True,
        saying: DecodingOptions | None = None,
        record: dict[str, Any] | None = None,
    ) -> None:
        if unk not in UNKNOWN:
            raise GradlightError(f'unk={unk!r} is unknown; give "error" or "allow".')
        self.network, self.vocabulary, self.preprocess, self.name = network, vocabulary, preprocess, name
        self.unk, self.count_end, self.saying = unk, count_end, saying or DecodingOptions()
        self._record = dict(record or {})
        self._check_width()

    @property
    def trunk(self) -> nn.Module:
        """The encoder: its layers are the captioner's."""
        return self.network.encoder

    @property
    def labels(self) -> list[str]:
        """The words that it knows, in the order of their numbers."""
        return list(self.vocabulary.words.values())

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pixels; where photos keep their own size, what `layers()` are listed for."""
        return self.preprocess.size

    def read(self, images: Sequence[ImageLike] | Tensor) -> tuple[Tensor, list[Photo]]:
        """Bring images to pixels [B,3,H,W] in the network's dtype and on its device, with a record of each photo."""
        if isinstance(images, Tensor):
            pixels, photos = images, read_pixels(images, self.preprocess)
        else:
            pixels, photos = read_images(images, self.preprocess)
        return self.cast(pixels), photos

    def objective(self, target: Any = None, unk: str | None = None) -> CaptionObjective:
        """Make the objective of a target: None (its own caption), a text, a Caption, words … (`targets.parse`).

        unk: what is done with unknown words here, if not what the captioner does with them.
        """
        rows = parse(target, self.vocabulary, self.unk if unk is None else unk)
        return CaptionObjective(self.network, self.vocabulary, rows, saying=self.saying, count_end=self.count_end)

    def word_objective(self, target: Any = None) -> CaptionObjective:
        """Make the objective of every word of a target apart."""
        rows = word_by_word(parse(target, self.vocabulary, self.unk))
        return CaptionObjective(self.network, self.vocabulary, rows, saying=self.saying, count_end=self.count_end)

    def caption(
        self,
        images: Any,
        beam_size: int = 3,
        max_length: int | None = None,
        suppress_unk: bool = False,
        length_penalty: str | None = None,
    ) -> list[Caption]:
        """Say a caption of each image, in eval mode: greedy search for beam_size=1, beam search above.

        max_length: the most tokens, END included; None: the captioner's own limit. suppress_unk: never say UNK.
        length_penalty: "avg" or "wu_ALPHA" compares beams per length. Raises GradlightError for images that cannot be
        read.
        """
        saying = DecodingOptions(beam_size, max_length, suppress_unk, length_penalty)
        captions: list[Caption] = []
        with preserved(self.network), torch.no_grad():
            for pixels in self._batches(as_list(images)):
                features = self.network.features(pixels)
                captions += self._captions(features, saying.say(self.network.decoder, features))
        return captions

    def describe(self) -> dict[str, Any]:
        """Describe the model in JSON types."""
        return {
            "name": self.name,
            "kind": "captioner",
            **self._record,
            "decoder": type(self.network.decoder).__name__,
            "words": len(self.vocabulary),
            "reading": self.network.reading.to_json(),
            "preprocessing": self.preprocess.to_json(),
        }

    def _captions(self, features: dict[str, Tensor], found: Sequence[Hypothesis]) -> Iterator[Caption]:
        tokens = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(each.tokens, dtype=torch.long) for each in found], batch_first=True, padding_value=-1
        ).to(features["fc"].device)
        log_probs = self.network.decoder.log_probs(features, tokens)
        steps, _ = step_log_probs(log_probs, tokens, self.vocabulary.specials.end)
        for each, row in zip(found, steps.tolist(), strict=True):
            length = len(each.tokens)
            said = self.vocabulary.decode(each.tokens)
            words = [Word.at(word, each.tokens, position, each.ended) for position, word in enumerate(said)]
            total = sum(row[: length + 1] if each.ended and self.count_end else row[:length])
            yield Caption(" ".join(said), words, list(each.tokens), total, row[:length], each.ended)

    def _batches(self, images: list[ImageLike] | Tensor) -> Iterator[Tensor]:
        """Read images a few at a time; those of another size than the ones before begin a batch of their own."""
        if isinstance(images, Tensor):
            yield from self.read(images)[0].split(_AT_ONCE)
            return
        waiting: list[Tensor] = []
        for image in images:
            pixels = self.read([image])[0]
            if waiting and (len(waiting) == _AT_ONCE or pixels.shape != waiting[0].shape):
                yield torch.cat(waiting)
                waiting = []
            waiting.append(pixels)
        if waiting:
            yield torch.cat(waiting)

    def _check_width(self) -> None:
        """Refuse an encoder whose features the decoder cannot read."""
        with preserved(self.network), torch.no_grad():
            features = self.network.features(self.cast(torch.zeros(1, 3, _PROBE, _PROBE)))
            try:
                self.network.decoder.start(features)
            except RuntimeError as error:
                widths = {name: tensor.shape[-1] for name, tensor in features.items()}
                raise GradlightError(
                    f"The decoder cannot read this encoder's features ({widths} numbers each): {error}. Give the"
                    " encoder that it was trained with."
                ) from error


def captioner(
    source: str | Path | nn.Module = "scenes",
    *,
    encoder: str | PathLike | nn.Module | None = None,
    tokenizer: Any = None,
    pretrained: bool = True,
    preprocess: Callable[[Image.Image], Any] | None = None,
    device: Device = None,
    unk: str = "error",
    count_end: bool = True,
) -> Captioner:
    """Make a captioner of the bundled "scenes", a file or folder of a supported project's checkpoint, or transformers.

    "transformers/NAME_OR_FOLDER", or a network of that library with its `tokenizer`: see `transformers.open_captioner`.
    Supported: gradlight's own folders, ImageCaptioning.pytorch and DiscCaptioning (`infos_*.pkl` beside `model*.pth`),
    the soft-attention tutorial (`*.pth.tar` beside `WORDMAP_*.json`). Where the file holds no encoder: torchvision's
    ResNet101 (pretrained, or untrained with pretrained=False), or `encoder`: "timm/NAME", "torchvision/NAME", a file of
    ResNet weights, or a ResNet. preprocess: a callable from an RGB Pillow image to a tensor [3,H,W], instead of the
    project's own. unk, count_end: see `Captioner`. Nothing in a checkpoint is ever executed. Raises GradlightError for
    what is not to be read, and says why.
    """
    if is_hub_source(source):
        from .hf_captioner import open_captioner

        if encoder is not None:
            raise GradlightError("encoder= is for recurrent decoders; a captioner of transformers has its own eye.")
        return open_captioner(
            source,
            tokenizer=tokenizer,
            pretrained=pretrained,
            preprocess=preprocess,
            device=device,
            unk=unk,
            count_end=count_end,
        )
    if tokenizer is not None:
        raise GradlightError(f"tokenizer= is for captioners of transformers, and {str(source)[:80]!r} is none.")
    if not isinstance(source, (str, Path)):
        raise GradlightError(
            f'{type(source).__name__} is no captioner: give "scenes", "transformers/NAME", or the path of a checkpoint.'
            " A network of your own goes into gradlight.models.captioner.Captioner(network, vocabulary, preprocess)."
        )
    found = read_checkpoint(SOURCES.captioner_checkpoint(source))
    # Weights made under the caller's inference_mode could never be differentiated.
    with torch.inference_mode(False):
        eye, described = find_encoder(found, encoder, pretrained)
        network = CaptionNetwork(eye, found.decoder, found.reading).eval()
    to_device(network, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return Captioner(
        network,
        found.vocabulary,
        _preprocess(found, preprocess),
        name=str(source),
        unk=unk,
        count_end=count_end,
        record={"project": found.project, "family": found.family, "encoder": described},
    )


def _preprocess(found: Checkpoint, given: Callable[[Image.Image], Any] | None) -> Preprocess:
    if given is not None:
        return MeasuredPreprocessing(given)
    return found.preprocessing or OriginalSize()
