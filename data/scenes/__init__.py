"""Generated scenes with exact ground truth: drawn from a seed (`generator`), described in sentences (`grammar`)."""

from .generator import CLASSES, HELD_OUT, SAMPLES, SEEDS, TRAINING, Scene, SceneObject, draw

__all__ = ["CLASSES", "HELD_OUT", "SAMPLES", "SEEDS", "TRAINING", "Scene", "SceneObject", "draw"]
