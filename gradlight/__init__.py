"""See where in an image a network found what it says.

The public names are imported when they are first used, so that `import gradlight` and `gradlight --help` cost
nothing.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import GradlightError as GradlightError
    from .errors import GradlightWarning as GradlightWarning
    from .explainers.archive import load as load
    from .explainers.explain import explain as explain
    from .explainers.maps import SaliencyMaps as SaliencyMaps
    from .explainers.meta import Meta as Meta
    from .explainers.methods import Method as Method
    from .models.captioner.captioner import captioner as captioner
    from .models.classifiers import classifier as classifier
    from .widgets.view import view as view
    from .widgets.viewer import Viewer as Viewer

__version__ = "0.1.0"

# Installed, the rooms (explainers, models, data …) lie inside this folder; in a checkout they lie beside it.
_HERE = Path(__file__).resolve().parent
if not (_HERE / "explainers").is_dir():
    __path__.append(str(_HERE.parent))

_NAMES = {
    "GradlightError": "errors",
    "GradlightWarning": "errors",
    "Meta": "explainers.meta",
    "Method": "explainers.methods",
    "SaliencyMaps": "explainers.maps",
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
