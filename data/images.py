"""Safe reading of image files: any bytes give an upright RGB image or one GradlightError that says why not."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from ..errors import GradlightError
from ..files import PathLike, format_path, open_regular

__all__ = ["IMAGE_SUFFIXES", "MAX_PIXELS", "find", "load", "load_stream", "sha256", "upright"]

MAX_PIXELS = 100_000_000
_LIMIT = f"{MAX_PIXELS // 1_000_000} megapixels"

# Tried in this order on the content. PostScript and other vector formats are left out, because Pillow would start an
# external program on them. TGA is the last, because it has no signature.
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "ICO", "JPEG2000", "AVIF", "TGA")

IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".ico", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo"}
    | {".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"}
)

_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_ODD_TIFF = "a damaged TIFF, or a kind that is not supported (64-bit floats, many channels): convert it to 8-bit RGB"
_LOOKS_LIKE = (
    (b"version https://git-lfs", "a Git LFS pointer, not the image itself: run `git lfs pull`"),
    (b"%!ps", "PostScript, which is never run: export it as PNG"),
    (b"\xc5\xd0\xd3\xc6", "PostScript, which is never run: export it as PNG"),
    (b"%pdf", "a PDF: export the page as PNG"),
    (b"\x1f\x8b", "gzip-compressed data: unpack it first"),
    (b"pk\x03\x04", "a zip archive: unpack it first"),
    (b"\x93numpy", "a NumPy array: load it with numpy.load and pass the array"),
    (b"<svg", "SVG, a vector format: export it as PNG"),
    (b"<?xml", "XML (SVG?), a vector format or data: export it as PNG"),
    (b"<!doctype", "a web page, perhaps an error page saved in place of the image: download it again"),
    (b"<html", "a web page, perhaps an error page saved in place of the image: download it again"),
    (b"ii*\0", _ODD_TIFF),
    (b"mm\0*", _ODD_TIFF),
    (b"{", "JSON text, perhaps an error saved in place of the image: download it again"),
)
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


class _UnusableError(Exception):
    """The reason for which an image is refused; `load` prepends the file's name."""


def load(path: PathLike) -> Image.Image:
    """Read an image file as an upright RGB image.

    The content decides the format, not the name. Transparent pixels are blended with white. Of animations and files
    of several pages, the first is read. 16-bit samples are divided by 257, never clipped or stretched; float samples
    must lie in 0 to 1 or in 0 to 255. Colour profiles and gamma are ignored, as by the loaders that networks were
    trained with. Truncated files are refused, unless the program has set Pillow's LOAD_TRUNCATED_IMAGES. No global
    setting of Pillow is changed, so several threads can load images at the same time.

    Args:
        path: The image file.

    Returns:
        The RGB image, turned as its EXIF orientation says. The only entry of its `info` is "orientation": 1 to 8 as
        in the file, or 1 where the file has none or an invalid one.

    Raises:
        GradlightError: The file is not a complete image of at most MAX_PIXELS. The message names the file; the size
            is checked before anything is decoded.

    Example:
        >>> Image.new("RGBA", (32, 24), (255, 0, 0, 0)).save("clear.png")
        >>> image = load("clear.png")
        >>> image.mode, image.size, image.getpixel((0, 0)), image.info
        ('RGB', (32, 24), (255, 255, 255), {'orientation': 1})
    """
    with open_regular(path) as stream:
        return load_stream(stream, format_path(path))


def load_stream(stream: BinaryIO, name: str) -> Image.Image:
    """Read an image from an open file or from bytes in memory, as `load` does.

    Args:
        stream: A binary stream that can be sought, as io.BytesIO.
        name: What messages call it.

    Returns:
        The RGB image, as of `load`.

    Raises:
        GradlightError: The content is not a complete image of at most MAX_PIXELS.

    Example:
        >>> import io
        >>> stream = io.BytesIO()
        >>> Image.new("L", (4, 2)).save(stream, "PNG")
        >>> load_stream(stream, "memory").size
        (4, 2)
    """
    stream.seek(0)
    try:
        return _decode(stream)
    except UnidentifiedImageError as error:
        cause: Exception = error
        reason = _explain_unidentified(stream)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        cause, reason = error, f"too many pixels ({error}): make it smaller first, the limit is {_LIMIT}"
    except _UnusableError as error:
        cause, reason = error, str(error)
    # Broken bytes make Pillow's readers fail in any way: SyntaxError, struct.error, IndexError, zlib.error …
    except Exception as error:
        detail = str(error) or type(error).__name__
        cause, reason = error, f"damaged or truncated, cannot be decoded ({detail}): get a whole copy of it"
    raise GradlightError(f"{name}: {reason}.") from cause


def upright(image: Image.Image) -> Image.Image:
    """Convert a Pillow image in memory to an upright RGB image of its own, as `load` does with a file.

    Args:
        image: A Pillow image of any mode that `load` accepts; it is not changed.

    Returns:
        The RGB image, turned as its EXIF orientation says, which is kept in `info["orientation"]`.

    Raises:
        GradlightError: The samples have no known range, or the file behind the image is damaged.

    Example:
        >>> upright(Image.new("L", (4, 2), 128)).getpixel((0, 0))
        (128, 128, 128)
    """
    orientation = _orientation(image)
    try:
        upright_image = _apply_orientation(_rgb(image), orientation)
    except _UnusableError as error:
        raise GradlightError(f"This Pillow image cannot be used: {error}.") from error
    except (OSError, SyntaxError) as error:
        raise GradlightError(f"This Pillow image cannot be decoded: {error}.") from error
    upright_image.info = {"orientation": orientation}
    return upright_image


def sha256(path: PathLike) -> str:
    """Compute the SHA-256 of a file, which is read block by block.

    Args:
        path: The file.

    Returns:
        64 hexadecimal digits.

    Raises:
        GradlightError: The file is missing, is not readable or is not a regular file.

    Example:
        >>> _ = Path("a.txt").write_text("abc")
        >>> sha256("a.txt")[:16]
        'ba7816bf8f01cfea'
    """
    digest = hashlib.sha256()
    with open_regular(path) as stream:
        try:
            while block := stream.read(1 << 20):
                digest.update(block)
        except OSError as error:
            raise GradlightError(f"{format_path(path)}: cannot be read: {error.strerror}. Check the disk.") from error
    return digest.hexdigest()


def find(folder: str | os.PathLike[str]) -> list[Path]:
    """Find the image files in a folder and its sub-folders by their suffix.

    Links to files are included; links to folders are not followed, so cyclic links do no harm. Hidden files and
    folders are skipped.

    Args:
        folder: The folder.

    Returns:
        The paths, sorted.

    Raises:
        GradlightError: A folder cannot be listed.

    Example:
        >>> Path("photos").mkdir()
        >>> for name in ("b.png", "a.JPG", "notes.txt", ".hidden.png"):
        ...     Path("photos", name).touch()
        >>> [path.name for path in find("photos")]
        ['a.JPG', 'b.png']
    """
    paths: list[Path] = []

    def refuse(error: OSError) -> None:
        where, why = format_path(error.filename), error.strerror
        raise GradlightError(f"{where}: cannot be listed: {why}. Check the folder.") from error

    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        visible = (name for name in names if not name.startswith("."))
        paths += [Path(parent, name) for name in visible if Path(name).suffix.lower() in IMAGE_SUFFIXES]
    return sorted(paths)


def _decode(stream: BinaryIO) -> Image.Image:
    """Decode an image; the EXIF orientation is applied."""
    Image.init()
    with Image.open(stream, formats=[name for name in _FORMATS if name in Image.OPEN]) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise _UnusableError(
                f"too many pixels: {width} x {height} exceeds the limit of {_LIMIT}: make it smaller first"
            )
        # Pillow applies the orientation of a TIFF while it decodes it, and drops the tag. In the other formats the tag
        # is read afterwards, because it may be stored behind the pixels.
        before = _orientation(image) if image.format == "TIFF" else 1
        image.load()
        after = _orientation(image)
        upright_image = _apply_orientation(_rgb(image), after)
    upright_image.info = {"orientation": after if before == 1 else before}
    return upright_image


def _apply_orientation(image: Image.Image, orientation: int) -> Image.Image:
    """Flip or turn an image as an EXIF orientation says."""
    return image.transpose(_TRANSPOSITIONS[orientation]) if orientation in _TRANSPOSITIONS else image


def _orientation(image: Image.Image) -> int:
    """Read the EXIF orientation, 1 where there is none."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # an invalid EXIF block does not make the image unusable
        return 1
    return int(value) if isinstance(value, int) and value in _TRANSPOSITIONS else 1


def _rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB; transparent pixels are blended with white."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_integers(image)
    if image.mode == "F":
        return _from_floats(image)
    try:
        if not image.has_transparency_data:
            return image.convert("RGB")
        rgba = image.convert("RGBA")
    except ValueError as error:
        raise _UnusableError(f"colour mode {image.mode} is not supported: convert it to RGB first") from error
    white = Image.new("RGB", rgba.size, "white")
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white


def _from_integers(image: Image.Image) -> Image.Image:
    """Convert integer samples of 16 bits to RGB: divided by 257 and rounded."""
    samples = np.asarray(image)
    lowest, highest = int(samples.min()), int(samples.max())
    if lowest < 0 or highest > 65535:
        raise _UnusableError(
            f"integer samples from {lowest} to {highest} are not supported: rescale them to 0 to 65535 first"
        )
    table = ((np.arange(65536) + 128) // 257).astype(np.uint8)
    grey = table[samples]
    if isinstance(transparent := image.info.get("transparency"), int):
        grey[samples == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def _from_floats(image: Image.Image) -> Image.Image:
    """Convert float samples to RGB: multiplied by 255 where all lie in 0 to 1."""
    samples = np.asarray(image)
    if not np.isfinite(samples).all():
        raise _UnusableError("float samples that are NaN or infinite are not supported: replace them first")
    lowest, highest = float(samples.min()), float(samples.max())
    if lowest < 0 or highest > 255:
        raise _UnusableError(
            f"float samples from {lowest:g} to {highest:g} are not supported: rescale them to 0 to 1 first"
        )
    scaled = samples * np.float32(255) if highest <= 1 else samples
    return Image.fromarray(np.rint(scaled).astype(np.uint8)).convert("RGB")


def _explain_unidentified(stream: BinaryIO) -> str:
    """Say what the file seems to be instead of an image."""
    stream.seek(0)
    start = stream.read(512)
    if not start:
        return "empty file (0 bytes): get a whole copy of it"
    if start[4:8] == b"ftyp" and start[8:12] in _HEIC_BRANDS:
        return "HEIC is not supported: convert it to JPEG first (phones can share photos as JPEG)"
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for prefix, description in _LOOKS_LIKE:
        if text.startswith(prefix):
            return f"not an image that can be read: it looks like {description}"
    return f"not an image, or damaged at its beginning. Give a whole file of one of {', '.join(_FORMATS)}"
