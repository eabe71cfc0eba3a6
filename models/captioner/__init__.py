"""Image captioners: a vision encoder and a text decoder behind the common objective interface."""

from .captioner import Captioner, captioner
from .checkpoints import Checkpoint, read_checkpoint
from .encoder import CaptionNetwork
from .targets import Caption, Phrase
from .vocabulary import Vocabulary

__all__ = [
    "Caption",
    "CaptionNetwork",
    "Captioner",
    "Checkpoint",
    "Phrase",
    "Vocabulary",
    "captioner",
    "read_checkpoint",
]
