"""Real photos through real architectures: every map finite, of the right shape, in the right place."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import gradlight as gl

NETWORKS = ["resnet50", "vgg16", "mobilenet_v3_large", "efficientnet_b0", "convnext_tiny"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_sixty_photos(shared: Path, name: str) -> None:
    photos = sorted((shared / "photos").glob("*.jpg"))
    assert len(photos) == 60
    torch.manual_seed(0)
    model = gl.classifier(f"torchvision/{name}", pretrained=False)
    maps = gl.explain(
        model, photos, methods=["selective_normgrad", "normgrad", "linear_approx", "grad_cam"], batch_size=6
    )
    for pair in maps.pairs:
        grid = next(layer.size for layer in model.layers() if layer.name == pair[1])
        assert maps[pair].shape == (60, 1, *grid)
        assert maps[pair].isfinite().all()
    for photo in maps.images:
        picture = photo.picture()
        assert picture.size == (photo.width, photo.height) == photo.view.photo
        left, top, right, bottom = photo.view.box
        # A centre crop: square, centred, within the photo, up to the rounding of the resize.
        assert right - left == pytest.approx(bottom - top, rel=0.02)
        assert (left + right) / 2 == pytest.approx(photo.width / 2, abs=0.02 * photo.width)
        assert (top + bottom) / 2 == pytest.approx(photo.height / 2, abs=0.02 * photo.height)
        assert left > -1
        assert top > -1
        assert right < photo.width + 1
        assert bottom < photo.height + 1


def test_the_view_leads_from_the_photo_to_its_pixels(shared: Path) -> None:
    """A bright spot painted on the photo is bright in the pixels where the view says that it is."""
    from PIL import ImageDraw

    model = gl.classifier("torchvision/resnet18", pretrained=False)
    for path in sorted((shared / "photos").glob("*.jpg"))[:12]:
        pixels, (photo,) = model.read([path])
        picture = photo.picture()
        x, y = photo.width * 0.52, photo.height * 0.47
        radius = max(2.0, photo.width / 60)
        painted = picture.copy()
        ImageDraw.Draw(painted).ellipse((x - radius, y - radius, x + radius, y + radius), fill=(255, 0, 255))
        change = (model.pixels(painted) - model.pixels(picture)).abs().sum(1)[0]
        rows, columns = torch.meshgrid(torch.arange(224) + 0.5, torch.arange(224) + 0.5, indexing="ij")
        found = [float((change * axis).sum() / change.sum()) for axis in (columns, rows)]
        expected = photo.view.to_pixels([x + 0.5, y + 0.5]).tolist()
        # The spot's own colours weigh its centre, so it may be off by a part of its radius.
        scale = 224 / (photo.view.box[2] - photo.view.box[0])
        assert found == pytest.approx(expected, abs=max(1.5, 0.6 * radius * scale))
        assert pixels.shape == (1, 3, 224, 224)
