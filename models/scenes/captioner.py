"""The bundled captioner of generated scenes: its network, its training set, and its training."""

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

__all__ = [
    "PLAN",
    "PREPROCESSING",
    "CaptionedScenes",
    "build",
    "checkpoint_of",
    "draw_captioned",
    "main_caption",
    "pixels_of",
    "train",
    "vocabulary",
]

PLAN = ResNetPlan("basic", (1, 1, 2, 2), (16, 32, 64, 128), 64, "none")
"""The slim ResNet of the scenes classifier; without the first pooling its maps have twice the resolution."""

PREPROCESSING = Preprocessing(size=(SIZE, SIZE), resize=(SIZE, SIZE), mean=MEAN, std=STD)

_BATCH_SIZE = 64
_CHUNK_SIZE = 250
_MAIN_CAPTION_SHARE = 0.75
_VALIDATION_SCENES = 500


def vocabulary() -> Vocabulary:
    """Return the words of the scenes' sentences, numbered from 1; 0 is BOS and END, and there is no UNK.

    Example:
        >>> vocabulary().decode(vocabulary().encode("a red star"))
        ['a', 'red', 'star']
    """
    return Vocabulary(dict(enumerate(sentences.WORDS, start=1)), SpecialTokens(0, 0))


def build() -> CaptionNetwork:
    """Build the network with an untrained decoder and the encoder of the bundled classifier."""
    encoder = build_resnet(PLAN)
    weights = load_bundled().state_dict()
    encoder.load_state_dict({name: weights[name] for name in encoder.state_dict()})
    words = len(sentences.WORDS) + 1
    decoder = Att2in2(
        SpecialTokens(0, 0),
        location_features=128 + 5,
        embed=96,
        size=256,
        attention=128,
        rows=words,
        columns=words,
        dropout=0.2,
    )
    return CaptionNetwork(encoder, decoder, FeaturePooling(boxes=True))


@dataclass(frozen=True)
class CaptionedScenes:
    """Scenes to train on.

    Args:
        pictures: [N,3,S,S], uint8.
        captions: the tokens of each scene's captions, the main one first.
    """

    pictures: Tensor
    captions: list[list[Tensor]]

    def __len__(self) -> int:
        return len(self.pictures)

    def shuffled(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield an epoch's batches in a random order; each half is mirrored at random, and its words with it."""
        for rows in torch.randperm(len(self))[: len(self) // _BATCH_SIZE * _BATCH_SIZE].split(_BATCH_SIZE):
            captions = [_choose_caption(self.captions[row]) for row in rows.tolist()]
            halves = zip(self.pictures[rows].chunk(2), _pad(captions).chunk(2), strict=True)
            mirrored = [_mirror(*half) for half in halves]
            pictures = torch.cat([pictures for pictures, _ in mirrored])
            yield pixels_of(pictures), torch.cat([tokens for _, tokens in mirrored])

    def in_order(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of the scenes as they are, with their main captions; every epoch has the same."""
        for rows in torch.arange(len(self)).split(_BATCH_SIZE):
            yield pixels_of(self.pictures[rows]), _pad([self.captions[row][0] for row in rows.tolist()])


def draw_captioned(seeds: Sequence[int], workers: int = 2, progress: bool = False) -> CaptionedScenes:
    """Draw the scenes of some seeds with their captions, in `workers` processes."""
    chunks = [seeds[start : start + _CHUNK_SIZE] for start in range(0, len(seeds), _CHUNK_SIZE)]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        drawn = list(tqdm(pool.map(_draw_chunk, chunks), total=len(chunks), unit="chunk", disable=not progress))
    words = vocabulary()
    captions = [[torch.tensor(words.encode(text.split())) for text in texts] for _, chunk in drawn for texts in chunk]
    return CaptionedScenes(torch.cat([pictures for pictures, _ in drawn]), captions)


def train(
    folder: Path, *, epochs: int = 16, count: int = 20_000, seed: int = 0, workers: int = 2, progress: bool = False
) -> Progress:
    """Train the network on generated scenes, and write it into a folder (`format.write_folder`).

    Until the end the folder has the state of the training; a training that was stopped resumes from its last epoch.

    Args:
        folder: of the captioner.
        epochs: the maximal number of epochs; the default is that of the bundled captioner.
        count: the number of scenes; the default is that of the bundled captioner.
        seed: of the weights and the order of the scenes.
        workers: the number of processes that draw scenes.
        progress: whether progress bars are shown.

    Returns:
        The validation losses.

    Raises:
        GradlightError: for less than one epoch or one batch of scenes, and for a folder that cannot be written.
    """
    if epochs < 1 or count < _BATCH_SIZE:
        raise GradlightError(f"Training takes at least 1 epoch and {_BATCH_SIZE} scenes; got {epochs} and {count}.")
    state_path = prepare(folder)
    training = draw_captioned(scenes.TRAINING[:count], workers, progress)
    validation = draw_captioned(scenes.TRAINING[-_VALIDATION_SCENES:], workers, progress)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build().to(memory_format=torch.channels_last)
        settings = TrainingSettings(epochs=epochs, seed=seed)
        steps = count // _BATCH_SIZE
        done = fit(network, training.shuffled, steps, validation.in_order, settings, state_path, progress)
    facts = {"trained on": f"{count} scenes", "settings": asdict(settings), "losses": done.losses}
    write_folder(folder, checkpoint_of(network), facts)
    state_path.unlink()
    return done


def checkpoint_of(network: CaptionNetwork) -> Checkpoint:
    """Describe a network for scenes as a checkpoint."""
    return Checkpoint(
        family="att2in2",
        project="gradlight",
        decoder=network.decoder,
        vocabulary=vocabulary(),
        encoder_state=network.encoder.state_dict(),
        plan=PLAN,
        pooling=network.pooling,
        preprocessing=PREPROCESSING,
    )


def _draw_chunk(seeds: Sequence[int]) -> tuple[Tensor, list[list[str]]]:
    """Draw scenes: their pictures [N,3,S,S], uint8, and their captions, the main one first."""
    drawn = [scenes.draw(seed, SIZE) for seed in seeds]
    pictures = torch.from_numpy(np.stack([scene.array for scene in drawn])).permute(0, 3, 1, 2).contiguous()
    return pictures, [[main_caption(scene), *scene.captions] for scene in drawn]


def main_caption(scene: scenes.Scene) -> str:
    """Return the main caption: the object, or the two largest. The other captions say how the objects are placed."""
    if len(scene.objects) == 1:
        return scene.captions[0]
    first, second = sorted(scene.objects, key=lambda thing: -int(thing.mask.sum()))[:2]
    return f"{first.name} and {second.name}"


def pixels_of(pictures: Tensor) -> Tensor:
    """Normalise pictures [B,3,S,S], uint8, to pixels."""
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return ((pictures.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def _choose_caption(captions: Sequence[Tensor]) -> Tensor:
    """Choose the main caption, or a random one of all."""
    return captions[0] if torch.rand(()) < _MAIN_CAPTION_SHARE else captions[int(torch.randint(len(captions), ()))]


def _pad(tokens: Sequence[Tensor]) -> Tensor:
    return pad_sequence(list(tokens), batch_first=True, padding_value=PADDING)


def _mirror(pictures: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Mirror a batch at random, horizontally and vertically; "left" becomes "right", and "above" "below"."""
    numbers = {word: number for number, word in enumerate(sentences.WORDS, start=1)}
    for dim, (first, second) in ((3, ("left", "right")), (2, ("above", "below"))):
        if torch.rand(()) < 0.5:
            a, b = numbers[first], numbers[second]
            pictures = pictures.flip(dim)
            tokens = torch.where(tokens == a, b, torch.where(tokens == b, a, tokens))
    return pictures, tokens
