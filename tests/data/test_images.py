from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from gradlight import GradlightError
from gradlight.data import images

ROOT = Path(__file__).resolve().parents[2]


def picture(height: int = 8, width: int = 12) -> np.ndarray:
    """Make an RGB array in which no two pixels are alike, so that every turn and mirror shows."""
    rows, columns = np.indices((height, width))
    return np.stack([rows * 16, columns * 16, rows + columns], axis=-1).astype(np.uint8)


def save(path: Path, array: np.ndarray, **options: object) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


def pixels(path: Path) -> np.ndarray:
    image = images.load(path)
    assert image.mode == "RGB"
    assert set(image.info) == {"orientation"}
    return np.asarray(image)


def png(width: int, height: int, data: bytes, *, depth: int, colour: int, transparent: bytes = b"") -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    key = chunk(b"tRNS", transparent) if transparent else b""
    return b"\x89PNG\r\n\x1a\n" + header + key + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the checker forks")
def test_every_nasty_case(shared: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    nasty = shared / "nasty"
    try:
        subprocess.run([sys.executable, nasty / "make_nasty.py", corpus, "--hazard"], check=True, capture_output=True)
        cases = json.loads((corpus / "expected.json").read_text())["cases"]
        command = [sys.executable, nasty / "check_loader.py", corpus, "gradlight.data.images:load", "--need-name"]
        checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    finally:
        shutil.rmtree(corpus, ignore_errors=True)
    assert len(cases) >= 190
    assert f"{len(cases)} cases, 0 failed, 0 refusals do not name the file, 0 not present" in checked.stdout, (
        checked.stdout
    )
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once_and_kept(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    # Large flat blocks survive JPEG; Pillow's own exif_transpose is the definition.
    stored = Image.fromarray(picture(4, 6)).resize((96, 64), Image.Resampling.NEAREST)
    path = tmp_path / f"turned.{suffix}"
    stored.save(path, exif=exif, quality=98)
    stored.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(stored))
    loaded = images.load(path)
    assert loaded.info == {"orientation": orientation}
    difference = np.abs(np.asarray(loaded).astype(int) - expected)
    assert difference.mean() < 4 if suffix in ("jpg", "webp") else difference.max() == 0


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_nonsense_orientation_counts_as_upright(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.png", picture(), exif=exif)
    assert images.load(path).info == {"orientation": 1}
    assert np.array_equal(pixels(path), picture())


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    alpha = np.full((8, 12), 255, np.uint8)
    alpha[:, :6] = 0
    alpha[:, 6] = 51  # a fifth of the picture, four fifths of white
    loaded = pixels(save(tmp_path / "a.png", np.dstack([picture(), alpha])))
    assert (loaded[:, :6] == 255).all()
    assert np.array_equal(loaded[:, 7:], picture()[:, 7:])
    assert np.abs(loaded[:, 6] - (picture()[:, 6] * 0.2 + 255 * 0.8)).max() <= 1


def test_palette_gives_colours_and_its_transparent_entry_white(tmp_path: Path) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([0, 1, 2])
    path = tmp_path / "a.png"
    image.save(path, transparency=1)
    assert pixels(path).tolist() == [[[10, 20, 30], [255, 255, 255], [70, 80, 90]]]


def test_sixteen_bits_are_divided_by_257_and_never_clipped(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 64 * 64).reshape(64, 64).round().astype(np.uint16)
    expected = np.rint(values / 257).astype(np.uint8)
    for suffix in ("png", "tif"):
        loaded = pixels(save(tmp_path / f"a.{suffix}", values))
        assert np.array_equal(loaded, np.repeat(expected[..., None], 3, axis=-1))


def test_transparent_value_of_sixteen_bit_grey_is_white(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    row = b"\0" + struct.pack(">2H", 0x1234, 0x8000)
    path.write_bytes(png(2, 1, row, depth=16, colour=0, transparent=struct.pack(">H", 0x1234)))
    assert pixels(path)[0, :, 0].tolist() == [255, 128]


@pytest.mark.parametrize("top", [1.0, 255.0])
def test_floats_in_the_two_usual_ranges(tmp_path: Path, top: float) -> None:
    values = np.linspace(0, top, 96, dtype=np.float32).reshape(8, 12)
    loaded = pixels(save(tmp_path / "a.tif", values))
    assert np.array_equal(loaded[..., 1], np.rint(np.linspace(0, 255, 96)).reshape(8, 12))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.float32(np.nan), "NaN or infinite are not supported: replace"),
        (np.float32(np.inf), "NaN or infinite are not supported: replace"),
        (np.float32(-0.5), "from -0.5 to 0 are not supported: rescale them to 0 to 1"),
        (np.float32(1000), "from 0 to 1000 are not supported: rescale them to 0 to 1"),
        (np.int32(-7), "integer samples from -7 to 0 are not supported: rescale them to 0 to 65535"),
        (np.int32(70000), "integer samples from 0 to 70000 are not supported: rescale them to 0 to 65535"),
    ],
)
def test_samples_that_have_no_picture(tmp_path: Path, value: np.generic, message: str) -> None:
    values = np.zeros((4, 4), value.dtype)
    values[1, 2] = value
    path = save(tmp_path / "odd.tif", values)
    with pytest.raises(GradlightError, match=rf"odd\.tif: .*{re.escape(message)}"):
        images.load(path)


def test_content_decides_not_the_name(tmp_path: Path) -> None:
    path = tmp_path / "really_a_png.jpg"
    save(path, picture(), format="PNG")
    assert np.array_equal(pixels(path), picture())


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    frames = [Image.fromarray(picture()), Image.new("RGB", (12, 8), "red")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert np.array_equal(pixels(path), picture())


def test_limit_is_looked_at_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "large.png", picture())
    monkeypatch.setattr(images, "MAX_PIXELS", 95)
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", lambda self: pytest.fail("the image was decoded"))
    with pytest.raises(GradlightError, match=r"large\.png: too many pixels: 12 x 8 exceeds the limit of 100 megapix"):
        images.load(path)


def test_image_of_exactly_the_limit_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 96)
    assert np.array_equal(pixels(save(tmp_path / "a.png", picture())), picture())


def test_more_than_pillow_opens(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png(30000, 30000, b"", depth=8, colour=2))
    with pytest.raises(GradlightError, match=r"bomb\.png: too many pixels \(.*900000000.*the limit is 100 megapixels"):
        images.load(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "bmp", "tif", "webp", "ppm"])
def test_half_a_file_is_refused(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = save(tmp_path / f"half.{suffix}", noise)
    assert images.load(path).size == (64, 64)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(GradlightError, match=rf"half\.{suffix}: .*(damaged|truncated)"):
        images.load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"empty file \(0 bytes\)"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript, which is never run"),
        (b"%PDF-1.7\n", "looks like a PDF"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "run `git lfs pull`"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC is not supported: convert it to JPEG"),
        (b"  <!DOCTYPE html><html></html>", "looks like a web page"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "looks like SVG, a vector format"),
        (b'{"error": 403}', "looks like JSON text"),
        (b"no picture at all", "not an image, or damaged at its beginning"),
    ],
)
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(GradlightError, match=rf"photo\.jpg: .*{message}"):
        images.load(path)


@pytest.mark.parametrize("read", [images.load, images.sha256])
def test_special_files_are_refused_without_waiting(tmp_path: Path, read: object) -> None:
    assert callable(read)
    with pytest.raises(GradlightError, match="a directory, not a regular file"):
        read(tmp_path)
    with pytest.raises(GradlightError, match=r"absent\.png: cannot be opened: No such file"):
        read(tmp_path / "absent.png")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(GradlightError, match=r"pipe.png: a named pipe \(fifo\), not a regular file"):
        read(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    with pytest.raises(GradlightError, match=r"zero\.png: a device, not a regular file"):
        read(tmp_path / "zero.png")
    (tmp_path / "self.png").symlink_to("self.png")
    with pytest.raises(GradlightError, match=r"self\.png: cannot be opened: Too many levels"):
        read(tmp_path / "self.png")
    with pytest.raises(GradlightError, match="not a valid path: embedded null byte"):
        read("a\0b")
    with pytest.raises(GradlightError, match="the path of a file was expected, got int: 0"):
        read(0)


def test_socket_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's address may have about a hundred characters only
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
        with pytest.raises(GradlightError, match=r"socket\.png: a socket, not a regular file"):
            images.load("socket.png")


def test_pipe_that_takes_the_place_of_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.png", picture())
    ordinary = os.stat(path)
    path.unlink()
    os.mkfifo(path)
    monkeypatch.setattr("gradlight.files.os.stat", lambda _: ordinary)
    with pytest.raises(GradlightError, match=r"a.png: a named pipe \(fifo\)"):
        images.load(path)


@pytest.mark.parametrize("name", ["two\nlines.jpg", "evil\u202egpj.exe", os.fsdecode(b"caf\xe9.jpg"), "100%s{0}.jpg"])
def test_awkward_names_do_not_break_messages(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"no picture")
    with pytest.raises(GradlightError, match="not an image") as caught:
        images.load(path)
    message = str(caught.value)
    assert message.isprintable()
    assert (name if name.isprintable() else repr(name)[1:-1]) in message


def test_text_and_bytes_and_path_name_the_same_file(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", picture())
    assert np.array_equal(pixels(path), np.asarray(images.load(str(path))))
    assert np.array_equal(pixels(path), np.asarray(images.load(os.fsencode(path))))


def test_nothing_global_changes_and_threads_agree(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"{i}.png", picture() + i) for i in range(16)]
    before = Image.MAX_IMAGE_PIXELS
    with ThreadPoolExecutor(8) as pool:
        loaded = list(pool.map(pixels, paths))
    assert before == Image.MAX_IMAGE_PIXELS
    assert all(np.array_equal(loaded[i], picture() + i) for i in range(16))


def test_loaded_image_needs_its_file_no_more(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", picture())
    image = images.load(path)
    path.unlink()
    assert type(image) is Image.Image
    assert image.resize((3, 2)).size == (3, 2)


def test_sha256_of_more_than_one_block(tmp_path: Path) -> None:
    content = os.urandom((1 << 20) + 17)
    path = tmp_path / "a.bin"
    path.write_bytes(content)
    assert images.sha256(path) == hashlib.sha256(content).hexdigest()


def test_find_is_sorted_recursive_and_ends(tmp_path: Path) -> None:
    names = ["b.JPG", "a.png", "inner/c.Jpeg", "inner/deeper/d.tiff"]
    for name in [*names, "notes.txt", "png", "._b.JPG", ".hidden/e.png"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "inner" / "loop").symlink_to(tmp_path)
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    assert images.find(tmp_path) == sorted(tmp_path / name for name in [*names, "link.png"])
    assert images.find(str(tmp_path)) == images.find(tmp_path)


def test_find_names_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(GradlightError, match="absent: cannot be listed: No such file or directory"):
        images.find(tmp_path / "absent")
