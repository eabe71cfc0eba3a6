"""Generated scenes with exact truth: drawn from a seed (`generator`), and described in sentences (`grammar`)."""

from .generator import CLASSES, HELD_OUT, SAMPLES, SEEDS, TRAINING, Scene, SceneObject, draw

__all__ = ["CLASSES", "HELD_OUT", "SAMPLES", "SEEDS", "TRAINING", "Scene", "SceneObject", "draw"]
