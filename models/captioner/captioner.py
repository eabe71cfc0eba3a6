"""Open a captioner: the bundled one, a checkpoint of a supported project, one of transformers, or a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ...errors import GradlightError
from ..base import Explainable, ImageLike, Photo, as_list, intact
from ..checkpoints import PathLike
from ..huggingface import is_hub_source
from ..images import read_images, read_pixels
from ..measured_preprocessing import MeasuredPreprocessing
from ..preprocessing import OriginalSize, Preprocess
from ..preserve import Device, exclusive, preserved, to_device
from ..registry import SOURCES
from .checkpoints import Checkpoint, find_encoder, read_checkpoint
from .decoder import PADDING, step_log_probs
from .encoder import CaptionNetwork
from .objective import CaptionObjective
from .search import DecodingOptions, Hypothesis
from .targets import Caption, Word, parse, word_by_word
from .vocabulary import UNKNOWN, Vocabulary

__all__ = ["Captioner", "captioner", "make_caption"]

_BATCH_SIZE = 16
_PROBE_SIZE = 64


class Captioner(Explainable):
    """A network that generates a caption for an image, with its vocabulary and preprocessing.

    Args:
        network: the encoder, the pooling of its features, and the decoder.
        vocabulary: the decoder's words.
        preprocess: maps photos to pixels.
        name: what `describe` calls the model.
        unk: what is done with words of a target that are not in the vocabulary: "error", or "allow" (they become UNK).
        count_end: whether END counts in the log-probability of a caption.
        decoding: how the caption of target=None is decoded; None: a beam search with three beams.
        record: what `describe` says of the model's origin.

    Raises:
        GradlightError: if `unk` is unknown, or if the decoder cannot read the encoder's features.

    Example:
        >>> from gradlight.data.scenes import draw
        >>> model = gl.captioner("scenes", device="cpu")
        >>> copy = Captioner(model.network, model.vocabulary, model.preprocess, name="copy")
        >>> copy.caption(draw(1).image)[0].text
        'a large purple triangle and a small cyan star'
    """

    network: CaptionNetwork
    _options: type[DecodingOptions] = DecodingOptions

    def __init__(
        self,
        network: CaptionNetwork,
        vocabulary: Vocabulary,
        preprocess: Preprocess,
        *,
        name: str = "captioner",
        unk: str = "error",
        count_end: bool = True,
        decoding: DecodingOptions | None = None,
        record: dict[str, Any] | None = None,
    ) -> None:
        if unk not in UNKNOWN:
            raise GradlightError(f'unk={unk!r} is unknown; give "error" or "allow".')
        self.network, self.vocabulary, self.preprocess, self.name = network, vocabulary, preprocess, name
        self.unk, self.count_end, self.decoding = unk, count_end, decoding or DecodingOptions()
        self._record = dict(record or {})
        self._check_width()

    @property
    def trunk(self) -> nn.Module:
        """The encoder: its layers are the captioner's."""
        return self.network.encoder

    @property
    def labels(self) -> list[str]:
        """The words of the vocabulary, in the order of their numbers."""
        return list(self.vocabulary.words.values())

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pixels; where photos keep their own size, the size that `layers()` is listed for."""
        return self.preprocess.size

    def read(self, images: Sequence[ImageLike] | Tensor) -> tuple[Tensor, list[Photo]]:
        """Preprocess images.

        Args:
            images: paths, PIL images or arrays; or pixels [B,3,H,W], which are not preprocessed.

        Returns:
            The pixels [B,3,H,W] in the network's dtype and on its device, and a record of each photo.
        """
        if isinstance(images, Tensor):
            pixels, photos = images, read_pixels(images, self.preprocess)
        else:
            pixels, photos = read_images(images, self.preprocess)
        return self.cast(pixels), photos

    def objective(self, target: Any = None, unk: str | None = None) -> CaptionObjective:
        """Make the objective of a target.

        Args:
            target: None (the generated caption), a text, a Caption, words … (`targets.parse`).
            unk: what is done with unknown words; None: what the captioner does with them.

        Returns:
            An objective with one score per image and target: the log-probability.

        Raises:
            GradlightError: for what is no target, and for unknown words.

        Example:
            >>> model = gl.captioner("scenes", device="cpu")
            >>> score = model.objective("a [red star] above a blue ring")(torch.zeros(1, 3, 160, 160))
            >>> list(score.shape)
            [1, 1]
        """
        specs = parse(target, self.vocabulary, self.unk if unk is None else unk)
        return CaptionObjective(self.network, self.vocabulary, specs, decoding=self.decoding, count_end=self.count_end)

    def word_objective(self, target: Any = None) -> CaptionObjective:
        """Make the objective with one target per word of a caption (see `objective`)."""
        specs = word_by_word(parse(target, self.vocabulary, self.unk))
        return CaptionObjective(self.network, self.vocabulary, specs, decoding=self.decoding, count_end=self.count_end)

    def caption(
        self,
        images: Any,
        beam_size: int = 3,
        max_length: int | None = None,
        suppress_unk: bool = False,
        length_penalty: str | None = None,
    ) -> list[Caption]:
        """Generate a caption for each image, in eval mode.

        Args:
            images: an image, a list of images, or pixels [B,3,H,W].
            beam_size: the number of beams; 1 is greedy search.
            max_length: the maximal number of tokens, END included; None: the captioner's own limit.
            suppress_unk: whether UNK is never decoded.
            length_penalty: "avg" or "wu_ALPHA" compares beams per length (`search.length_score`).

        Returns:
            One caption per image.

        Raises:
            GradlightError: for images that cannot be read, and for options out of range.

        Example:
            >>> from gradlight.data.scenes import draw
            >>> model = gl.captioner("scenes", device="cpu")
            >>> caption = model.caption(draw(1).image, beam_size=1)[0]
            >>> caption.text
            'a large purple triangle and a small cyan star'
            >>> caption.log_prob < 0
            True
        """
        options = self._options(beam_size, max_length, suppress_unk, length_penalty)
        captions: list[Caption] = []
        with exclusive(self.network), intact(self.network), preserved(self.network), torch.no_grad():
            for pixels in self._batches(as_list(images)):
                features = self.network.features(pixels)
                captions += self._captions(features, options.decode(self.network.decoder, features))
        return captions

    def describe(self) -> dict[str, Any]:
        """Describe the model in JSON types."""
        return {
            "name": self.name,
            "kind": "captioner",
            **self._record,
            "decoder": type(self.network.decoder).__name__,
            "words": len(self.vocabulary),
            "reading": self.network.pooling.to_json(),
            "preprocessing": self.preprocess.to_json(),
        }

    def _captions(self, features: dict[str, Tensor], hypotheses: Sequence[Hypothesis]) -> Iterator[Caption]:
        """Make the captions of hypotheses, with the log-probabilities of their words under teacher forcing."""
        token_rows = [torch.tensor(hypothesis.tokens, dtype=torch.long, device="cpu") for hypothesis in hypotheses]
        tokens = nn.utils.rnn.pad_sequence(token_rows, batch_first=True, padding_value=PADDING)
        tokens = tokens.to(features["fc"].device)
        log_probs = self.network.decoder.log_probs(features, tokens)
        steps, _ = step_log_probs(log_probs, tokens, self.vocabulary.special_tokens.end)
        for hypothesis, row in zip(hypotheses, steps.tolist(), strict=True):
            texts = self.vocabulary.decode(hypothesis.tokens)
            yield make_caption(hypothesis.tokens, texts, row, hypothesis.ended, self.count_end)

    def _batches(self, images: list[ImageLike] | Tensor) -> Iterator[Tensor]:
        """Read images a few at a time; an image of another size than the ones before begins a new batch."""
        if isinstance(images, Tensor):
            yield from self.read(images)[0].split(_BATCH_SIZE)
            return
        batch: list[Tensor] = []
        for image in images:
            pixels = self.read([image])[0]
            if batch and (len(batch) == _BATCH_SIZE or pixels.shape != batch[0].shape):
                yield torch.cat(batch)
                batch = []
            batch.append(pixels)
        if batch:
            yield torch.cat(batch)

    def _check_width(self) -> None:
        """Raise GradlightError if the decoder cannot read the encoder's features."""
        with preserved(self.network), torch.no_grad():
            features = self.network.features(self.cast(torch.zeros(1, 3, _PROBE_SIZE, _PROBE_SIZE, device="cpu")))
            try:
                self.network.decoder.start(features)
            except RuntimeError as error:
                widths = {name: tensor.shape[-1] for name, tensor in features.items()}
                raise GradlightError(
                    f"The decoder cannot read this encoder's features ({widths} numbers each): {error}. Give the"
                    " encoder that it was trained with."
                ) from error


def make_caption(
    tokens: tuple[int, ...], texts: Sequence[str], log_probs: list[float], ended: bool, count_end: bool
) -> Caption:
    """Make a caption of its tokens, their texts, and the log-probabilities of its words and of END behind the last."""
    count = len(tokens)
    words = [Word.at(text, tokens, position, ended) for position, text in enumerate(texts)]
    total = sum(log_probs[: count + 1] if ended and count_end else log_probs[:count])
    return Caption(" ".join(texts), words, list(tokens), total, log_probs[:count], ended)


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
    """Open a captioner. No code of a checkpoint is ever executed.

    Args:
        source: "scenes" (bundled); the path of a checkpoint or of its folder; "transformers/NAME_OR_FOLDER"; or a
            network of transformers. Supported checkpoints: gradlight's own folders, ImageCaptioning.pytorch and
            DiscCaptioning (`infos_*.pkl` beside `model*.pth`), the soft-attention tutorial (`*.pth.tar` beside
            `WORDMAP_*.json`).
        encoder: "timm/NAME", "torchvision/NAME", a file of ResNet weights, or a ResNet; None: the encoder of the
            checkpoint, or else torchvision's ResNet101.
        tokenizer: of a network of transformers: a tokenizer, its name or its folder.
        pretrained: whether torchvision's ResNet101, a named encoder or a named network gets its pretrained weights.
        preprocess: a callable from an RGB Pillow image to a tensor [3,H,W]; None: the project's own preprocessing.
        device: where the network goes; None: the GPU if there is one, and a given network stays where it is.
        unk: what is done with words of a target that are not in the vocabulary: "error", or "allow" (they become UNK).
        count_end: whether END counts in the log-probability of a caption.

    Returns:
        The captioner; its network is in eval mode, except one that was given as a module.

    Raises:
        GradlightError: for every other source, and for files that cannot be read.

    Example:
        >>> from gradlight.data.scenes import draw
        >>> model = gl.captioner("scenes", device="cpu")
        >>> model.caption(draw(1).image)[0].text
        'a large purple triangle and a small cyan star'
    """
    if is_hub_source(source):
        from .hf_captioner import open_captioner

        if encoder is not None:
            raise GradlightError("encoder= is for recurrent decoders; a captioner of transformers has its own encoder.")
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
    checkpoint = read_checkpoint(SOURCES.captioner_checkpoint(source))
    # Weights made under the caller's inference_mode could never be differentiated.
    with torch.inference_mode(False):
        encoder_network, encoder_record = find_encoder(checkpoint, encoder, pretrained)
        network = CaptionNetwork(encoder_network, checkpoint.decoder, checkpoint.pooling).eval()
    to_device(network, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return Captioner(
        network,
        checkpoint.vocabulary,
        _choose_preprocess(checkpoint, preprocess),
        name=str(source),
        unk=unk,
        count_end=count_end,
        record={"project": checkpoint.project, "family": checkpoint.family, "encoder": encoder_record},
    )


def _choose_preprocess(checkpoint: Checkpoint, custom: Callable[[Image.Image], Any] | None) -> Preprocess:
    """Return the caller's own preprocessing, or that of the checkpoint."""
    if custom is not None:
        return MeasuredPreprocessing(custom)
    return checkpoint.preprocessing or OriginalSize()
