"""Generated scenes: the same from the same seed, and true in what they say of themselves."""

from __future__ import annotations

import re

import numpy as np
import pytest

from gradlight.data.scenes.generator import (
    CLASSES,
    COLOURS,
    HELD_OUT,
    KINDS,
    SAMPLES,
    TRAINING,
    Scene,
    SceneObject,
    draw,
)
from gradlight.errors import GradlightError

SCENES = [draw(seed) for seed in range(150)]
WORDS_OF_SIZE = ("small", "medium", "large")
NUMBERS = ("one", "two", "three", "four")


def test_a_seed_is_a_scene() -> None:
    for seed in (0, 7, 10_000_000):
        one, two = draw(seed), draw(seed)
        assert one.image.tobytes() == two.image.tobytes()
        assert all((a.mask == b.mask).all() for a, b in zip(one.objects, two.objects, strict=True))
    assert draw(1).image.tobytes() != draw(2).image.tobytes()


def test_the_seeds_of_each_purpose_are_apart() -> None:
    assert TRAINING[-1] < HELD_OUT[0]
    assert len(set(SAMPLES)) == 6
    assert not any(seed in TRAINING or seed in HELD_OUT for seed in SAMPLES)


def test_every_shape_and_colour_occurs_and_so_does_every_count() -> None:
    assert len(KINDS) >= 8
    assert len(COLOURS) >= 8
    assert {name for scene in SCENES for name in scene.classes} == set(CLASSES)
    assert {len(scene.objects) for scene in SCENES} == {1, 2, 3, 4}


def test_masks_are_visible_apart_and_inside_the_picture() -> None:
    for scene in SCENES:
        total = np.zeros((160, 160), int)
        for thing in scene.objects:
            left, top, right, bottom = thing.box
            assert thing.mask[top:bottom, left:right].sum() == thing.mask.sum() > 40
            total += thing.mask
        assert total.max() == 1, "a pixel shows one object"


def test_at_least_half_of_each_object_is_visible() -> None:
    """The whole object is drawn here anew, from its place, size and turn, one point per pixel."""
    y, x = np.mgrid[0:160, 0:160] + 0.5
    for scene in SCENES:
        for thing in scene.objects:
            across, down = (x - thing.centre[0]) / thing.radius, (y - thing.centre[1]) / thing.radius
            turned = (across + 1j * down) * np.exp(-1j * thing.turn)
            whole = KINDS[thing.kind](turned.real, turned.imag)
            assert (thing.mask & whole).sum() >= 0.95 * thing.mask.sum()
            assert (thing.mask & whole).sum() >= 0.5 * whole.sum()


def test_sizes_are_apart() -> None:
    radii = {scale: [t.radius for s in SCENES for t in s.objects if t.scale == scale] for scale in WORDS_OF_SIZE}
    assert max(radii["small"]) < min(radii["medium"]) <= max(radii["medium"]) < min(radii["large"])


def test_no_two_objects_share_a_name() -> None:
    for scene in SCENES:
        assert len({(thing.kind, thing.colour) for thing in scene.objects}) == len(scene.objects)


def test_each_object_has_its_colour_where_its_mask_is() -> None:
    for scene in SCENES:
        picture = np.asarray(scene.image, float)
        for thing in scene.objects:
            found = picture[thing.mask].mean(0)
            distance = {name: np.abs(found - colour).sum() for name, colour in COLOURS.items()}
            assert min(distance, key=lambda name: distance[name]) == thing.colour


def test_labels_are_the_classes_of_the_objects() -> None:
    for scene in SCENES[:40]:
        present = {thing.kind for thing in scene.objects} | {thing.colour for thing in scene.objects}
        assert set(scene.classes) == present
        assert [name for name, label in zip(CLASSES, scene.labels, strict=True) if label] == scene.classes
        for name in CLASSES:
            assert bool(scene.mask(name).any()) == (name in present)


def _named(scene: Scene, name: str) -> SceneObject:
    (found,) = [thing for thing in scene.objects if thing.name == name]
    return found


def test_captions_are_true() -> None:
    relation = re.compile(r"^(?:there is )?(an? [\w ]+?) (above|below|left of|right of) (an? [\w ]+)$")
    seen = set()
    for scene in SCENES:
        for caption in scene.captions:
            if found := relation.match(caption):
                a, b = _named(scene, found[1]), _named(scene, found[3])
                seen.add(found[2])
                x, y = b.centre[0] - a.centre[0], b.centre[1] - a.centre[1]
                along = {"above": y, "below": -y, "left of": x, "right of": -x}[found[2]]
                assert along > 0
                assert along == max(abs(x), abs(y)), "it is the direction in which they are farther apart"
            elif counted := re.match(r"^there are (\w+) objects$", caption):
                assert NUMBERS.index(counted[1]) + 1 == len(scene.objects)
            else:
                listed = re.sub(r"^(there is |a picture of )| alone$", "", caption).split(" and ")
                assert {_named(scene, name) for name in listed} == set(scene.objects)
            assert caption.endswith(" alone") <= (len(scene.objects) == 1)
    assert seen == {"above", "below", "left of", "right of"}


def test_captions_are_several_of_few_words() -> None:
    words = set()
    for scene in SCENES:
        assert len(set(scene.captions)) == len(scene.captions) >= 4
        for caption in scene.captions:
            assert re.fullmatch(r"[a-z]+( [a-z]+)*", caption)
            words.update(caption.split())
    assert len(words) < 60


def test_every_object_is_named_as_it_is() -> None:
    for scene in SCENES:
        for thing in scene.objects:
            article, *size, colour, kind = thing.name.split()
            assert article == ("an" if [*size, colour][0][0] in "aeiou" else "a")
            assert size == ([] if thing.scale == "medium" else [thing.scale])
            assert (colour, kind) == (thing.colour, thing.kind)


def test_larger_scenes_are_drawn_larger() -> None:
    scene = draw(4, 224)
    assert scene.image.size == (224, 224)
    assert scene.objects[0].mask.shape == (224, 224)


@pytest.mark.parametrize(("seed", "size"), [(-1, 160), (0, 100)])
def test_what_cannot_be_drawn_is_refused(seed: int, size: int) -> None:
    with pytest.raises(GradlightError, match=f"got seed {seed} and size {size}"):
        draw(seed, size)


def test_an_unknown_class_names_what_is_near() -> None:
    with pytest.raises(GradlightError, match="Did you mean 'star'"):
        SCENES[0].mask("strar")
