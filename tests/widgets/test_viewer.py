"""The widget alone, without a page: traits, computing, what is sent, what is saved."""

from __future__ import annotations

import json
import struct
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import pytest
import torch
import traitlets

import gradlight as gl
from gradlight.errors import GradlightError
from gradlight.models.objective import Target
from gradlight.widgets.live_source import LiveSource, live_source
from gradlight.widgets.map_sources import bracketed, choices_of, class_keys, select_target, sentence_of
from gradlight.widgets.options import DISPLAY_OPTIONS, OPTIONS
from gradlight.widgets.payload import MapKey, pack
from gradlight.widgets.view import view
from gradlight.widgets.viewer import Viewer
from gradlight.widgets.worker import Cancelled, CancelToken, Worker


def _unpacked(packed: bytes) -> list[dict[str, Any]]:
    (length,) = struct.unpack_from("<I", packed)
    parts: list[dict[str, Any]] = json.loads(packed[4 : 4 + length])["parts"]
    at = 4 + length
    for part in parts:
        for entry in part["maps"]:
            _, _, h, w, low, high = entry
            levels = np.frombuffer(packed, np.uint8, h * w, at).reshape(h, w)
            entry.append(low + (levels / 255.0) ** 2 * (high - low))
            at += h * w
    assert at == len(packed)
    return parts


def test_what_is_sent_is_the_maps_to_eight_bits(classifier: Any, photo: Path) -> None:
    maps = gl.explain(classifier, photo, methods=["normgrad", "linear_approx"], layers=["layer3", "layer4"])
    (part,) = _unpacked(pack({MapKey(2, "x", "ascent", 0.5): maps}, 7))
    assert (part["image"], part["target"], part["meta"], part["lr"]) == (2, "x", "ascent", 0.5)
    assert len(part["maps"]) == 4
    for method, layer, *_, values in part["maps"]:
        true = maps[method, maps.layers[layer]][0, 0].numpy()
        assert np.abs(values - true).max() <= 0.004 * (true.max() - true.min())


def test_seventeen_layers_and_five_methods_are_less_than_a_megabyte(classifier: Any, photo: Path) -> None:
    names = [layer.name for layer in classifier.layers()][:17]
    viewer = view(classifier, photo, layers=names)
    (part,) = _unpacked(viewer._maps)
    assert len(part["maps"]) == 17 * 5
    state = viewer.get_state()
    sent = sum(len(value) if isinstance(value, bytes) else len(json.dumps(value)) for value in state.values())
    assert sent < 1_000_000


def test_maps_that_are_not_numbers_are_sent_as_flat(classifier: Any, photo: Path) -> None:
    maps = gl.explain(classifier, photo, layers="layer4")
    maps.rows("selective_normgrad", "layer4")[0, 0, 0] = float("nan")
    assert _unpacked(pack({MapKey(0, "x"): maps}, 1))[0]["maps"][0][4:6] == [0.0, 0.0]


def test_it_is_a_widget_like_any_other(classifier: Any, photo: Path) -> None:
    viewer = view(classifier, photo, layers="stages", opacity=0.5)
    slider = ipywidgets.FloatSlider(min=0, max=1)
    link = traitlets.link((slider, "value"), (viewer, "opacity"))
    seen: list[Any] = []
    viewer.observe(lambda change: seen.append(change["new"]), "layer")
    assert ipywidgets.HBox([viewer, slider]).children[0] is viewer
    slider.value = 0.25
    viewer.layer = "layer2"
    link.unlink()
    assert (viewer.opacity, seen) == (0.25, ["layer2"])


def test_a_new_target_gives_the_maps_of_explain(classifier: Any, photo: Path) -> None:
    viewer = view(classifier, photo, layers="stages", methods=["normgrad", "gradient"])
    viewer.target = "star"
    assert viewer.wait(20)
    expected = gl.explain(classifier, photo, "star", methods=["normgrad", "gradient"])
    assert viewer.maps.pairs == expected.pairs
    assert all(viewer.maps[pair].equal(expected[pair]) for pair in expected.pairs)
    assert viewer.maps.targets[0][0].label == "star"
    viewer.meta, viewer.lr = "ascent", 0.05
    assert viewer.wait(20)
    expected = gl.explain(classifier, photo, "star", methods="normgrad", meta=gl.Meta(0.05, "ascent"))
    assert viewer.maps["normgrad", "layer4"].equal(expected["normgrad", "layer4"])


def test_targets_are_found_as_explain_finds_them(classifier: Any, photo: Path) -> None:
    viewer = view(classifier, photo, layers="layer4")
    viewer.target = "min"
    assert viewer.target == classifier.predict(photo, top=16)[0][-1].label
    viewer.target = "0"
    assert viewer.target == classifier.labels[0]
    with pytest.raises(GradlightError, match=r"No class is called 'staar'\. Did you mean 'star'"):
        viewer.target = "staar"
    with pytest.raises(GradlightError, match="a pane shows one at a time"):
        viewer.target = "top5"
    assert viewer.wait(20)


def test_several_targets_are_there_from_the_start(classifier: Any, photo: Path) -> None:
    viewer = view(classifier, photo, [["star", "purple"]], layers="layer4")
    assert viewer.target == "star"
    viewer.target = "purple"
    assert viewer.work == {}
    assert viewer.maps.targets[0][0].label == "purple"


def test_a_phrase_is_not_the_sum_of_its_words(photo: Path) -> None:
    captioner = gl.captioner("scenes")
    captioner.network.double()  # the products that are added cancel in part
    viewer = view(captioner, photo, layers="layer4", methods="linear_approx")
    words = viewer.scene["sentence"]
    found = {}
    for span in [(1, 2), (2, 3), (1, 3)]:
        viewer.target = bracketed(words, *span)
        assert viewer.wait(20)
        found[span] = viewer.maps["linear_approx", "layer4"]
    caption = captioner.caption(photo)[0]
    expected = gl.explain(captioner, photo, caption.span(1, 3), methods="linear_approx", layers="layer4")
    assert found[1, 3].equal(expected["linear_approx", "layer4"])
    # This one method is linear in the gradient, so here, and only here, the words add up.
    torch.testing.assert_close(
        found[1, 2] + found[2, 3], found[1, 3], rtol=1e-9, atol=1e-12 * float(found[1, 3].abs().max())
    )


def test_a_method_is_offered_where_it_is_defined(classifier: Any, photo: Path) -> None:
    viewer = view(classifier, photo, layers=["layer4.1.conv1", "layer4"], methods="normgrad_real")
    assert viewer.maps.pairs == [("normgrad_real", "layer4.1.conv1")]
    with pytest.raises(GradlightError, match="'layer4'"):
        view(classifier, photo, layers="layer4", methods="normgrad_real")
    viewer.method = "conv3x3+norm"
    assert viewer.wait(20)
    assert ["conv3x3+norm", "conv3x3+norm"] in viewer.about["options"]["method"]
    with pytest.raises(GradlightError, match="Did you mean 'normgrad'"):
        viewer.method = "normgrat"


def test_only_the_last_request_is_shown(classifier: Any, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    viewer = view(classifier, photo, layers="layer4")
    made: list[str] = []
    slow = LiveSource.maps

    def maps(self: Any, key: MapKey, methods: Any, token: CancelToken) -> Any:
        for _ in range(20):
            token.step(0.0)
            time.sleep(0.01)
        made.append(key.target)
        return slow(self, key, methods, token)

    monkeypatch.setattr(LiveSource, "maps", maps)
    labels = [label for label in classifier.labels if label != viewer.target][:6]
    begin = time.perf_counter()
    for label in labels:
        viewer.target = label
        time.sleep(0.02)
    assert time.perf_counter() - begin < 0.5
    assert viewer.wait(20)
    assert made == [labels[-1]]
    assert _unpacked(viewer._maps)[0]["target"] == labels[-1]


def test_cancelling_goes_back_to_what_was_shown(classifier: Any, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    viewer = view(classifier, photo, layers="layer4")
    before, begun = viewer.target, threading.Event()

    def forever(self: Any, key: MapKey, methods: Any, token: CancelToken) -> Any:
        while True:
            token.step(0.5)
            begun.set()
            time.sleep(0.005)

    monkeypatch.setattr(LiveSource, "maps", forever)
    viewer.target = "purple"
    assert begun.wait(5)
    assert viewer.work["state"] == "busy"
    with pytest.raises(GradlightError, match="still being computed"):
        _ = viewer.maps
    viewer.cancel()
    assert viewer.wait(5)
    assert viewer.target == before
    assert viewer.work == {"state": "done", "text": "Cancelled."}


def test_an_error_in_the_background_is_one_sentence(
    classifier: Any, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    viewer = view(classifier, photo, layers="layer4")
    before = viewer.target

    def broken(*_: Any) -> Any:
        raise RuntimeError("the network is gone")

    monkeypatch.setattr(LiveSource, "maps", broken)
    viewer.target = "purple"
    assert viewer.wait(5)
    assert viewer.work == {"state": "failed", "text": "RuntimeError: the network is gone"}
    assert viewer.target == before


def test_the_network_is_left_as_it_was_when_it_is_called_off(classifier: Any, photo: Path) -> None:
    source = live_source(classifier, photo, ["normgrad"], "all")
    before = {name: tensor.clone() for name, tensor in classifier.network.state_dict().items()}
    reported: list[float] = []
    token = CancelToken(lambda progress: (reported.append(progress), token.stop() if progress > 0.5 else None))
    with pytest.raises(Cancelled):
        source.maps(MapKey(0, "star"), ["normgrad"], token)
    assert 0.5 < reported[-1] < 0.6
    assert all(tensor.equal(before[name]) for name, tensor in classifier.network.state_dict().items())
    assert not any(module._forward_hooks for module in classifier.network.modules())
    assert all(parameter.requires_grad for parameter in classifier.network.parameters())


def test_a_worker_ends_with_its_work() -> None:
    done: list[int] = []
    worker = Worker(lambda _: None, lambda error: done.append(-1))
    for number in range(5):
        worker.submit(lambda token, number=number: done.append(number))
    assert worker.wait(5)
    assert done[-1] == 4
    time.sleep(0.05)
    assert not [thread for thread in threading.enumerate() if thread.name == "gradlight-viewer"]


def test_a_notebook_keeps_a_picture(classifier: Any, captioner: Any, photo: Path) -> None:
    plain = view(classifier, photo, layers="stages")
    data, _ = plain._repr_mimebundle_()
    assert {"application/vnd.jupyter.widget-view+json", "image/png"} <= set(data)
    seen = {plain.picture()}
    for look in ({"layer": "layer1"}, {"combine": "product"}, {"compare": "method", "others": ["linear_approx"]}):
        seen.add(view(classifier, photo, layers="stages", **look).picture())
    seen.add(view(captioner, photo, layers="stages").picture())
    assert len(seen) == 5
    assert all(picture.startswith(b"\x89PNG") for picture in seen)


@pytest.fixture(scope="module")
def drawn(classifier: Any, photo: Path) -> Viewer:
    return view(classifier, photo, layers=["layer3", "layer4"], methods=["normgrad", "linear_approx"])


@pytest.mark.parametrize("method", ["normgrad", "linear_approx"])
@pytest.mark.parametrize("name", [name for name in DISPLAY_OPTIONS if OPTIONS[name].values])
def test_the_picture_differs_with_every_display_option(drawn: Viewer, name: str, method: str) -> None:
    option = OPTIONS[name]
    pictures = set()
    drawn.method = method
    for value in option.values:
        setattr(drawn, name, value)
        pictures.add(drawn.picture())
    setattr(drawn, name, option.default)
    # "auto" is one of the other values.
    assert len(pictures) == len(option.values) - ("auto" in option.values)


def test_the_picture_differs_with_opacity_weights_and_comparisons(drawn: Viewer) -> None:
    pictures = [drawn.picture()]
    for changes in (
        {"opacity": 0.3},
        {"combine": "sum"},
        {"weights": {"layer3": 0.0}},
        {"weights": {}, "weighting": "uniform"},
        {"compare": "layer", "others": ["layer3"]},
        {"compare": "method", "others": ["linear_approx"]},
    ):
        drawn.change(**changes)
        pictures.append(drawn.picture())
    drawn.change(**{name: OPTIONS[name].default for name in ("opacity", "combine", "weighting", "compare", "others")})
    assert len(set(pictures)) == len(pictures)
    assert drawn.picture() == pictures[0]


def test_a_picture_of_flat_maps_and_of_no_maps(classifier: Any, photo: Path) -> None:
    maps = gl.explain(classifier, photo, layers=["layer3", "layer4"])
    maps.rows("selective_normgrad", "layer4")[:] = 3.0
    maps.rows("selective_normgrad", "layer3")[0, 0] = float("nan")
    viewer = view(maps)
    for layer in ("layer3", "layer4"):
        for display in OPTIONS["display"].values:
            viewer.change(layer=layer, display=display, normalisation="symmetric")
            assert viewer.picture().startswith(b"\x89PNG")
    viewer.change(combine="product", weights={"layer3": 0.0, "layer4": 0.0})
    assert viewer.picture().startswith(b"\x89PNG")


def test_traits_docstrings_and_page_derive_from_one_table(drawn: Viewer) -> None:
    own = {name for name in Viewer.class_own_traits(sync=True) if not name.startswith("_")}
    assert own - {"about", "scene", "work", "found", "listing"} == set(OPTIONS)
    for name, option in OPTIONS.items():
        trait = Viewer.class_own_traits()[name]
        assert trait.help == option.help
        assert trait.default() == option.default
        if option.values:
            assert trait.values == list(option.values)
            assert drawn.about["options"][name] == [list(pair) for pair in option.values.items()]
        assert drawn.about["controls"][name]["label"] == option.label
        for documented in (view, Viewer):
            assert documented.__doc__ is not None
            assert all(line in documented.__doc__ for line in option.format_help().splitlines())
    with pytest.raises(traitlets.TraitError):
        drawn.display = "side"
    with pytest.raises(traitlets.TraitError):
        drawn.opacity = 1.5


def test_the_words_of_finished_maps() -> None:
    caption = Target("caption", 0, "a red star")
    words = [Target("word", i, word) for i, word in enumerate(["a", "red", "star"])]
    assert sentence_of([caption, words[1]]) == ["a", "red", "star"]
    assert sentence_of(words) == ["a", "red", "star"]
    assert sentence_of(words[1:]) == []
    assert sentence_of([caption, Target("word", 0, "the")]) == []
    assert sentence_of([Target("class", 0, "star")]) == []
    keys = [choice.key for choice in choices_of([caption, *words, Target("word", 1, "red star")])]
    assert keys == ["a red star", "[a] red star", "a [red] star", "a red [star]", "a [red star]"]
    assert [choice.key for choice in choices_of([Target("class", 1, "x"), Target("class", 2, "x")])] == ["x", "x #1"]
    assert class_keys(["crane", "dog", "crane"]) == ["0", "dog", "2"]


def test_classes_of_the_same_name_are_told_apart(classifier: Any, photo: Path) -> None:
    labels = ["crane", "crane", *classifier.labels[2:]]
    model = gl.classifier(classifier.network, labels=labels, preprocess=_pixels)
    viewer = view(model, photo, 1, layers="layer4")
    assert viewer.target == "1"
    viewer.target = "0"
    assert viewer.wait(20)
    assert viewer.maps.targets[0][0].index == 0


def _pixels(picture: Any) -> Any:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


def test_one_target_of_several_is_taken(classifier: Any, photo: Path) -> None:
    maps = gl.explain(classifier, photo, "top2", layers="layer4")
    assert select_target(maps, 1)["selective_normgrad", "layer4"][0, 0].equal(
        maps["selective_normgrad", "layer4"][0, 1]
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((None,), "A model needs an image to look at"),
        ((["a.jpg", "b.jpg"],), "one image at a time; 2 were given"),
        (("/nowhere.jpg",), "nowhere"),
    ],
)
def test_what_cannot_be_viewed_is_refused(classifier: Any, arguments: tuple[Any, ...], said: str) -> None:
    with pytest.raises(GradlightError, match=said):
        view(classifier, *arguments)


def test_a_bare_network_is_refused(photo: Path) -> None:
    with pytest.raises(GradlightError, match=r"Linear cannot be viewed: give gradlight\.classifier"):
        view(torch.nn.Linear(1, 1), photo)  # type: ignore[arg-type]


def test_closing_ends_everything(classifier: Any, photo: Path) -> None:
    viewer = view(classifier, photo, layers="layer4")
    viewer.close()
    assert viewer.comm is None
    assert isinstance(viewer, Viewer)


@pytest.mark.slow
def test_deep_networks_are_sent_within_the_budget(photo: Path) -> None:
    model = gl.classifier("torchvision/vgg16", pretrained=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        viewer = view(model, photo, 0)
    assert len(viewer.about["layers"]) > 25
    assert len(viewer._maps) + len(viewer._photo) < 1_000_000
