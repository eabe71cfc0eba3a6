"""Registry of sources: packages that bring images ("scenes:7"), classifiers or captioners ("scenes") under a name.

The bundled scenes are one source. A plug-in is another: its package holds a `Source` and names it in pyproject.toml,

    [project.entry-points."gradlight.sources"]
    cells = "my_package:SOURCE"

or a program calls `SOURCES.register(source)`. Nothing is imported before a name is asked for: built-in sources are
imported first, plug-ins only for a name that no built-in source has.
"""

from __future__ import annotations

import importlib
import os
import re
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Protocol, TypeVar

from PIL import Image
from torch import nn

from ..errors import GradlightError, GradlightWarning, nearest
from .checkpoints import PathLike
from .preprocessing import Preprocess

__all__ = [
    "GROUP",
    "SOURCES",
    "ClassifierOpener",
    "ImageScheme",
    "LoadedNetwork",
    "NamedImage",
    "Source",
    "SourceRegistry",
]

GROUP = "gradlight.sources"
"""The group of entry points under which plug-ins name their sources."""

_BUILT_IN = ("gradlight.models.scenes:SOURCE",)
_MAX_SOURCES = 64
# Two letters at least, so that a drive ("C:") is none.
_SCHEME = re.compile(r"[A-Za-z][\w+-]+")
# A bare word, so that it is no path of a checkpoint.
_CAPTIONER = re.compile(r"[\w-]+")

_T = TypeVar("_T")


# --- what a source brings ---


@dataclass(frozen=True)
class LoadedNetwork:
    """A classifier's network, with what its library or source says about it.

    Args:
        network: Pixels [B,3,H,W] → logits.
        labels: The names of its classes; None if they are unknown.
        preprocessing: Brings an image to the pixels that the network was trained on.
        library: The name of the library that built the network, for the record in files.
        version: The version of this library.
        multi_label: Whether the classes do not exclude one another.
    """

    network: nn.Module
    labels: list[str] | None
    preprocessing: Preprocess
    library: str
    version: str
    multi_label: bool = False


class ClassifierOpener(Protocol):
    """Build one named classifier of a source."""

    def __call__(self, *, pretrained: bool, checkpoint: PathLike | None, labels: Sequence[str] | None) -> LoadedNetwork:
        """Build the network: with its own weights, with those of a checkpoint, or with random ones."""


@dataclass(frozen=True)
class ImageScheme:
    """Images that have a name instead of a file: "SCHEME:" and whatever the source makes of the rest.

    Args:
        canonical: Full name → the one spelling that is stored in files. Raises GradlightError where the name is wrong.
        load: Full name → upright RGB image, the same each time.
    """

    canonical: Callable[[str], str]
    load: Callable[[str], Image.Image]


@dataclass(frozen=True)
class NamedImage:
    """An image of a scheme.

    Args:
        name: Its name as files store it, "scenes:7".
        scheme: Makes its picture.
    """

    name: str
    scheme: ImageScheme

    def load(self) -> Image.Image:
        """Make the upright RGB image."""
        return self.scheme.load(self.name)


@dataclass(frozen=True)
class Source:
    """What one package brings.

    Args:
        name: The name of the source, unique in the registry.
        images: Scheme, without the colon → its images.
        classifiers: Name, as `gradlight.classifier` takes it → the function that builds it.
        captioners: Name, as `gradlight.captioner` takes it → a function that gives its checkpoint's file or folder.

    Example:
        >>> from PIL import Image
        >>> from gradlight.models.registry import ImageScheme, Source
        >>> grey = ImageScheme(canonical=str, load=lambda name: Image.new("RGB", (8, 8), name.partition(":")[2]))
        >>> Source("plain", images={"plain": grey}).images["plain"].load("plain:grey").size
        (8, 8)
    """

    name: str
    images: Mapping[str, ImageScheme] = field(default_factory=dict)
    classifiers: Mapping[str, ClassifierOpener] = field(default_factory=dict)
    captioners: Mapping[str, Callable[[], Path]] = field(default_factory=dict)

    def tables(self) -> dict[str, Mapping[str, object]]:
        """Give the names of each kind that must be unique in the registry."""
        return {"image scheme": self.images, "classifier": self.classifiers, "captioner": self.captioners}


# --- the registry ---


class SourceRegistry:
    """Sources by name, imported when a name asks for them.

    Args:
        built_in: Sources of gradlight itself, as "module:attribute".
        group: The group of entry points where plug-ins are found; None for none.
    """

    def __init__(self, built_in: Sequence[str] = (), group: str | None = None) -> None:
        self._sources: dict[str, Source] = {}
        self._built_in = list(built_in)
        self._group = group
        self._lock = threading.RLock()

    def register(self, source: Source) -> None:
        """Add a source; in a program of several processes, each of them must do so.

        Args:
            source: What the package brings.

        Raises:
            GradlightError: If one of its names is taken or is no name, or the registry is full.
        """
        with self._lock:
            self._load_built_in()
            self._add(source)

    def unregister(self, name: str) -> None:
        """Remove a source.

        Args:
            name: The name of the source.

        Raises:
            GradlightError: If no such source is registered.
        """
        with self._lock:
            if self._sources.pop(name, None) is None:
                raise GradlightError(f"No source {name!r} is registered.{nearest(name, self._sources)}")

    def named_image(self, path: str) -> NamedImage | None:
        """Find the image that a name such as "scenes:7" stands for.

        Args:
            path: A path or a name.

        Returns:
            The image; None if the text begins with no registered scheme, so that it is a path.

        Raises:
            GradlightError: If the text begins with a scheme and the rest names no image of it.
        """
        scheme = self._find(lambda source: source.images, _scheme_of(path))
        return None if scheme is None else NamedImage(scheme.canonical(path), scheme)

    def scheme_hint(self, path: str) -> str:
        """Tell which schemes there are, for the error about a file that does not exist; "" where none was meant."""
        scheme = _scheme_of(path)
        if not scheme or os.path.lexists(path):
            return ""
        schemes = self._names(lambda source: source.images)
        listed = ", ".join(f"{name}:" for name in schemes)
        return f" {scheme}: is no registered image scheme.{nearest(scheme, schemes)} Registered: {listed}"

    def classifier_opener(self, name: str) -> ClassifierOpener | None:
        """Find the function that builds a classifier; None if no source has one of this name."""
        return self._find(lambda source: source.classifiers, name)

    def classifier_names(self) -> list[str]:
        """List the classifiers of every source; imports plug-ins."""
        return self._names(lambda source: source.classifiers)

    def captioner_checkpoint(self, name_or_path: str | Path) -> str | Path:
        """Find the checkpoint of a captioner by its name.

        Args:
            name_or_path: A registered name; any other text or Path is the path of a checkpoint already.

        Returns:
            The path of the checkpoint.

        Raises:
            GradlightError: If a bare word is neither a registered name nor an existing file or folder.
        """
        if not isinstance(name_or_path, str) or not _CAPTIONER.fullmatch(name_or_path):
            return name_or_path
        checkpoint = self._find(lambda source: source.captioners, name_or_path)
        if checkpoint is not None:
            return checkpoint()
        if os.path.lexists(name_or_path):
            return name_or_path
        names = self._names(lambda source: source.captioners)
        raise GradlightError(
            f"There is no captioner {name_or_path!r}, and no such file or folder.{nearest(name_or_path, names)}"
            f" Registered: {', '.join(names)}. Give one of these, or the path of a checkpoint."
        )

    def _find(self, table: Callable[[Source], Mapping[str, _T]], name: str) -> _T | None:
        """Look a name up among built-in and registered sources, then among plug-ins that are not imported yet."""
        if not name:
            return None
        for load in (self._load_built_in, self._load_plugins):
            with self._lock:
                load()
                entries = [table(source)[name] for source in self._sources.values() if name in table(source)]
            if entries:
                return entries[0]
        return None

    def _names(self, table: Callable[[Source], Mapping[str, object]]) -> list[str]:
        with self._lock:
            self._load_built_in()
            self._load_plugins()
            return [name for source in self._sources.values() for name in table(source)]

    def _load_built_in(self) -> None:
        while self._built_in:
            module, _, attribute = self._built_in[0].partition(":")
            self._add(getattr(importlib.import_module(module), attribute))
            del self._built_in[0]  # only now, so that an interrupted import is tried again

    def _load_plugins(self) -> None:
        """Import the plug-ins once. One that fails is reported by a warning, after all others are registered."""
        if self._group is None:
            return
        group, self._group = self._group, None
        failures = []
        for entry_point in metadata.entry_points(group=group):
            try:
                self._add(entry_point.load())
            except Exception as error:  # the code of a plug-in may fail in any way
                failures.append((entry_point, error))
        for entry_point, reason in failures:
            warnings.warn(
                f"The plug-in {entry_point.name!r} ({entry_point.value}, of the entry points {group}) cannot be used"
                f" because {type(reason).__name__}: {reason} Its images and models are unknown;"
                " repair or uninstall it.",
                GradlightWarning,
                stacklevel=4,
            )

    def _add(self, source: Source) -> None:
        if not isinstance(source, Source):
            raise GradlightError(f"A source must be a gradlight.models.registry.Source, not {type(source).__name__}.")
        self._check_names(source)
        self._sources[source.name] = source

    def _check_names(self, source: Source) -> None:
        if len(self._sources) >= _MAX_SOURCES:
            raise GradlightError(f"{_MAX_SOURCES} sources are registered, which is the most. Unregister one first.")
        if source.name in self._sources:
            raise GradlightError(f"A source {source.name!r} is registered already. Unregister it, or name the new one.")
        for scheme in source.images:
            if not _SCHEME.fullmatch(scheme):
                raise GradlightError(
                    f"Source {source.name!r}: an image scheme must be two or more letters, digits, _, + or -, a letter"
                    f" first, without the colon; it is {scheme!r}."
                )
        for name in source.captioners:
            if not _CAPTIONER.fullmatch(name):
                raise GradlightError(
                    f"Source {source.name!r}: a captioner's name must be letters, digits, _ or - alone; it is {name!r}."
                )
        for kind, names in source.tables().items():
            for holder in self._sources.values():
                if taken := sorted(set(names) & set(holder.tables()[kind])):
                    raise GradlightError(
                        f"Source {source.name!r} brings the {kind} {taken[0]!r}, which source {holder.name!r} has"
                        " already. Give it another name."
                    )


def _scheme_of(path: str) -> str:
    """Give what stands before the colon if it can be an image scheme, else ""."""
    scheme, colon, _ = path.partition(":")
    return scheme if colon and _SCHEME.fullmatch(scheme) else ""


SOURCES = SourceRegistry(_BUILT_IN, GROUP)
"""The registry of this process. It lives as long as the process, because images that were opened by name are drawn
again by name, for instance when a file of maps is shown; it holds 64 sources at most, each a few functions."""
