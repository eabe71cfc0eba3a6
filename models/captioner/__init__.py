"""Captioners: a ResNet and a recurrent decoder behind the common objective."""

from .caption import Caption, Phrase
from .captioner import Captioner, captioner
from .checkpoints import Checkpoint, read_checkpoint
from .network import CaptionNetwork
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
