"""gradlight: saliency maps that show where in an image a network found the class, the caption or the word it outputs.

    >>> import gradlight as gl
    >>> model = gl.classifier("scenes")  # bundled; or "timm/resnet50", or a network of your own
    >>> maps = gl.explain(model, "scenes:1", "star", methods="normgrad")  # or a path, a Pillow image, an array …
    >>> maps["normgrad", "layer4"].shape  # [images, targets, height, width]
    torch.Size([1, 1, 10, 10])

The public names are imported when they are first used, so that `import gradlight` and `gradlight --help` are fast.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import GradlightError as GradlightError
    from .errors import GradlightWarning as GradlightWarning
    from .explainers.archive import load as load
    from .explainers.capture import Tap as Tap
    from .explainers.explain import explain as explain
    from .explainers.maps import SaliencyMaps as SaliencyMaps
    from .explainers.meta import Meta as Meta
    from .explainers.methods import Method as Method
    from .models.base import Explainable as Explainable
    from .models.captioner.captioner import captioner as captioner
    from .models.classifiers import classifier as classifier
    from .models.objective import Objective as Objective
    from .models.objective import Target as Target
    from .widgets.view import view as view
    from .widgets.viewer import Viewer as Viewer

__version__ = "0.1.0"

# Installed, the packages (explainers, models, data …) are inside this folder; in a checkout they are beside it.
_HERE = Path(__file__).resolve().parent
if not (_HERE / "explainers").is_dir():
    __path__.append(str(_HERE.parent))

_NAMES = {
    "Explainable": "models.base",
    "GradlightError": "errors",
    "GradlightWarning": "errors",
    "Meta": "explainers.meta",
    "Method": "explainers.methods",
    "Objective": "models.objective",
    "SaliencyMaps": "explainers.maps",
    "Tap": "explainers.capture",
    "Target": "models.objective",
    "Viewer": "widgets.viewer",
    "captioner": "models.captioner.captioner",
    "classifier": "models.classifiers",
    "explain": "explainers.explain",
    "load": "explainers.archive",
    "view": "widgets.view",
}

__all__ = sorted([*_NAMES, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'gradlight' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(f".{_NAMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
