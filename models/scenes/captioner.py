"""The bundled captioner of generated scenes: its network, the scenes that it is trained on, and its training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from ...data.scenes import generator as scenes
from ...data.scenes import grammar as sentences
from ...errors import GradlightError
from ..captioner.checkpoints import Checkpoint
from ..captioner.decoder import PADDING, SpecialTokens
from ..captioner.encoder import CaptionNetwork, FeaturePooling, ResNetPlan, build_resnet
from ..captioner.format import write_folder
from ..captioner.rnn_decoders import Att2in2
from ..captioner.trainer import Progress, TrainingSettings, fit, prepare
from ..captioner.vocabulary import Vocabulary
from ..preprocessing import Preprocessing
from .classifier import MEAN, SIZE, STD, load_bundled

__all__ = ["PLAN", "PREPROCESSING", "CaptionedScenes", "build", "draw_captioned", "train", "vocabulary"]

PLAN = ResNetPlan("basic", (1, 1, 2, 2), (16, 32, 64, 128), 64, "none")
"""The slim ResNet of the scenes classifier; without the first pooling its maps are twice as fine."""

PREPROCESSING = Preprocessing(size=(SIZE, SIZE), resize=(SIZE, SIZE), mean=MEAN, std=STD)

_BATCH = 64
_CHUNK = 250
_MAIN_CAPTION_SHARE = 0.75
_VALIDATION_COUNT = 500


def vocabulary() -> Vocabulary:
    """Number the words of the scenes' sentences from 1; 0 is BOS and END, and there is no UNK.

    Returns:
        The vocabulary.

    Example:
        >>> from gradlight.models.scenes.captioner import vocabulary
        >>> "triangle" in vocabulary().words.values()
        True
    """
    return Vocabulary(dict(enumerate(sentences.WORDS, start=1)), SpecialTokens(0, 0))


def build() -> CaptionNetwork:
    """Make the network, with an untrained decoder and the encoder of the bundled classifier.

    Returns:
        The network.
    """
    encoder = build_resnet(PLAN)
    state = load_bundled().state_dict()
    encoder.load_state_dict({name: state[name] for name in encoder.state_dict()})
    words = len(sentences.WORDS) + 1
    decoder = Att2in2(
        SpecialTokens(0, 0), places=128 + 5, embed=96, size=256, attention=128, rows=words, columns=words, dropout=0.2
    )
    return CaptionNetwork(encoder, decoder, FeaturePooling(boxes=True))


@dataclass(frozen=True)
class CaptionedScenes:
    """Scenes to train on.

    Args:
        pictures: [N,3,S,S] in bytes.
        captions: The tokens of each scene's captions, the main one first.
    """

    pictures: Tensor
    captions: list[list[Tensor]]

    def __len__(self) -> int:
        return len(self.pictures)

    def shuffled(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Give an epoch's batches of pixels and tokens in random order, each half mirrored, and its words with it."""
        for rows in torch.randperm(len(self))[: len(self) // _BATCH * _BATCH].split(_BATCH):
            tokens = [_sample(self.captions[row]) for row in rows.tolist()]
            halves = zip(self.pictures[rows].chunk(2), _padded(tokens).chunk(2), strict=True)
            mirrored = [_mirrored(*half) for half in halves]
            pictures = torch.cat([pictures for pictures, _ in mirrored])
            yield pixels_of(pictures), torch.cat([tokens for _, tokens in mirrored])

    def in_order(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Give batches of pixels and tokens of the scenes as they are, with their main captions."""
        for rows in torch.arange(len(self)).split(_BATCH):
            yield pixels_of(self.pictures[rows]), _padded([self.captions[row][0] for row in rows.tolist()])


def draw_captioned(seeds: Sequence[int], workers: int = 2, progress: bool = False) -> CaptionedScenes:
    """Draw scenes with their captions, in several processes.

    Args:
        seeds: The scenes.
        workers: The number of processes.
        progress: Whether to show a progress bar.

    Returns:
        The pictures and captions.
    """
    chunks = [seeds[start : start + _CHUNK] for start in range(0, len(seeds), _CHUNK)]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        drawn = list(tqdm(pool.map(_draw_chunk, chunks), total=len(chunks), unit="chunk", disable=not progress))
    words = vocabulary()
    captions = [[torch.tensor(words.encode(text.split())) for text in texts] for _, chunk in drawn for texts in chunk]
    return CaptionedScenes(torch.cat([pictures for pictures, _ in drawn]), captions)


def train(
    folder: Path, *, epochs: int = 16, count: int = 20_000, seed: int = 0, workers: int = 2, progress: bool = False
) -> Progress:
    """Train the network and write it into a folder, in gradlight's own format.

    The defaults are those of the bundled captioner. The state of the training is kept in the folder until the end, and
    a training that was stopped goes on from its last epoch.

    Args:
        folder: The folder to write.
        epochs: Passes over the scenes.
        count: The number of training scenes.
        seed: Of torch's random numbers.
        workers: Processes that draw the scenes.
        progress: Whether to show progress bars.

    Returns:
        The losses of the training.

    Raises:
        GradlightError: If a number is too small, or the folder cannot be written.
    """
    if epochs < 1 or count < _BATCH:
        raise GradlightError(f"Training takes at least 1 epoch and {_BATCH} scenes; got {epochs} and {count}.")
    state_path = prepare(folder)
    drawn = draw_captioned(scenes.TRAINING[:count], workers, progress)
    validation = draw_captioned(scenes.TRAINING[-_VALIDATION_COUNT:], workers, progress)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build().to(memory_format=torch.channels_last)
        settings = TrainingSettings(epochs=epochs, seed=seed)
        trained = fit(network, drawn.shuffled, count // _BATCH, validation.in_order, settings, state_path, progress)
    facts = {"trained on": f"{count} scenes", "settings": asdict(settings), "losses": trained.losses}
    write_folder(folder, checkpoint_of(network), facts)
    state_path.unlink()
    return trained


def checkpoint_of(network: CaptionNetwork) -> Checkpoint:
    """Describe a network for scenes as a checkpoint."""
    return Checkpoint(
        family="att2in2",
        project="gradlight",
        decoder=network.decoder,
        vocabulary=vocabulary(),
        encoder_state=network.encoder.state_dict(),
        plan=PLAN,
        reading=network.reading,
        preprocessing=PREPROCESSING,
    )


def _draw_chunk(seeds: Sequence[int]) -> tuple[Tensor, list[list[str]]]:
    drawn = [scenes.draw(seed, SIZE) for seed in seeds]
    pictures = torch.from_numpy(np.stack([scene.array for scene in drawn])).permute(0, 3, 1, 2).contiguous()
    return pictures, [[main_caption(scene), *scene.captions] for scene in drawn]


def main_caption(scene: scenes.Scene) -> str:
    """Give the main caption: the object, or the two largest; the other captions say how they lie to each other.

    Args:
        scene: A scene.

    Returns:
        Its caption.
    """
    if len(scene.objects) == 1:
        return scene.captions[0]
    first, second = sorted(scene.objects, key=lambda thing: -int(thing.mask.sum()))[:2]
    return f"{first.name} and {second.name}"


def pixels_of(pictures: Tensor) -> Tensor:
    """Bring pictures [B,3,S,S] in bytes to pixels."""
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return ((pictures.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def _sample(captions: Sequence[Tensor]) -> Tensor:
    return captions[0] if torch.rand(()) < _MAIN_CAPTION_SHARE else captions[int(torch.randint(len(captions), ()))]


def _padded(tokens: Sequence[Tensor]) -> Tensor:
    return pad_sequence(list(tokens), batch_first=True, padding_value=PADDING)


def _mirrored(pictures: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Mirror a batch at random, horizontally and vertically; left becomes right, and above below."""
    numbers = {word: number for number, word in enumerate(sentences.WORDS, start=1)}
    for dim, (word, mirrored_word) in ((3, ("left", "right")), (2, ("above", "below"))):
        if torch.rand(()) < 0.5:
            a, b = numbers[word], numbers[mirrored_word]
            pictures = pictures.flip(dim)
            tokens = torch.where(tokens == a, b, torch.where(tokens == b, a, tokens))
    return pictures, tokens
