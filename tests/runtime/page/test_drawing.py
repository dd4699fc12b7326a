"""The page's JavaScript against the functions of the runtime that it follows, in Chromium."""

import base64
import io
from dataclasses import replace

import cv2
import numpy as np
import pytest
from browser import browsing, serving
from PIL import Image

from runtime.card import InputSpec, OutputSpec
from runtime.image import fit, load_image, resize, restore
from runtime.page.files import alone_files
from runtime.result import Segmentation

LOOK = "const {LOOK} = await import('/page/look.js');"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page from which the modules of the real one can be imported."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "page").mkdir()
    for name, file in alone_files().items():
        (folder / name).write_bytes(file.content)
    (folder / "blank.html").write_text("<!doctype html><title>Test</title>")
    with browsing() as browser, serving(folder) as address:
        found = browser.new_page()
        found.goto(f"{address}blank.html")
        yield found


def asked(page, module, call, dtype, **arrays):
    """Call functions of a module with arrays, which get their names, and return the array that the call gives."""
    given = {name: value for name, value in arrays.items() if not isinstance(value, np.ndarray)}
    packed = {
        name: [value.dtype.name, base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()]
        for name, value in arrays.items()
        if isinstance(value, np.ndarray)
    }
    text = page.evaluate(
        f"""async ([packed, given]) => {{
            const m = await import('/page/{module}.js'); {LOOK}
            const kinds = {{uint8: Uint8ClampedArray, float32: Float32Array, uint16: Uint16Array}}, a = {{...given}};
            for (const [name, [kind, text]] of Object.entries(packed)) {{
                a[name] = new kinds[kind](Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
            }}
            const found = {call}, bytes = new Uint8Array(found.buffer, found.byteOffset, found.byteLength);
            let text = "";
            for (let start = 0; start < bytes.length; start += 8192) {{
                text += String.fromCharCode(...bytes.subarray(start, start + 8192));
            }}
            return btoa(text);
        }}""",
        [packed, given],
    )
    return np.frombuffer(base64.b64decode(text), dtype)


def picture(height, width, channels=3, seed=0):
    """A photograph of sorts: smooth, with edges and noise, uint8 [height, width, channels]."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (max(2, height // 8), max(2, width // 8), channels), np.uint8)
    large = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR).reshape(height, width, channels)
    return np.clip(large + random.integers(-20, 21, large.shape), 0, 255).astype(np.uint8)


def probabilities(classes, height, width, seed=1):
    """Smooth float32 [classes, height, width] of 0..1; of several classes the sum is 1."""
    noise = np.random.default_rng(seed).normal(0, 3, (classes, height, width)).astype(np.float32)
    smooth = np.stack([cv2.GaussianBlur(plane, (9, 9), 0) for plane in noise]) * 3
    if classes == 1:
        return 1 / (1 + np.exp(-smooth))
    powers = np.exp(smooth)
    return powers / powers.sum(axis=0)


@pytest.mark.parametrize(
    ("size", "unlike"),
    [((40, 60), 0.01), ((37, 53), 0.01), ((1, 1), 0.01), ((40, 121), 0.01), ((160, 200), 0.2), ((100, 60), 0.2)],
    ids=str,
)
def test_pictures_are_resized_as_by_opencv(page, size, unlike):
    """Where a side grows OpenCV cuts off more bits than it needs to, so that one value in six is lower by 1."""
    image = picture(80, 121)
    call = "m.resizedBytes(a.image, a.shape, a.size)"
    found = asked(page, "resample", call, np.uint8, image=image, shape=image.shape, size=size)
    expected = resize(image, size)
    difference = np.abs(found.reshape(expected.shape).astype(int) - expected)
    assert difference.max() <= 1 and (difference > 0).mean() < unlike


SPECS = [
    InputSpec(size=(32, 48)),
    InputSpec(size=(32, 48), fit="letterbox", mean=(0.1, 0.5, 0.9)),
    InputSpec(size=(48, 32), fit="letterbox"),
    InputSpec(fit="native"),
    InputSpec(fit="native", scale=0.3),
    InputSpec(size=(64, 96), channels="L", mean=(0.5,), std=(1.0,)),
    InputSpec(size=(32, 48), levels=(20, 180)),
    InputSpec(fit="native", levels=(0, 4095)),
]


@pytest.mark.parametrize(
    "spec", SPECS, ids=lambda spec: f"{spec.fit} {spec.size} {spec.channels} {spec.scale} {spec.levels}"
)
@pytest.mark.parametrize("size", [(61, 47), (1, 5)], ids=str)
@pytest.mark.filterwarnings("ignore::runtime.errors.ImageWarning")
def test_pictures_are_fitted_as_by_the_runtime(page, tmp_path, spec, size):
    image = picture(*size)
    cv2.imwrite(str(tmp_path / "image.png"), image[:, :, ::-1])
    expected = fit(load_image(tmp_path / "image.png", spec.channels, levels=spec.levels), spec)
    rgba = np.dstack([image, np.full(size, 255, np.uint8)])
    given = {"channels": spec.channels, "levels": spec.levels, "fit": spec.fit, "size": spec.size, "scale": spec.scale}
    given |= {"mean": spec.mean, "min_size": spec.min_size}
    call = "m.fitted(m.channelsOf(a.rgba, a.spec), [...a.shape, a.spec.channels.length], a.spec)"
    part = "new Float32Array([f.top, f.left, ...f.inner, ...f.shape, ...f.bytes])"
    place, found = np.split(
        asked(page, "fit", f"((f) => {part})({call})", np.float32, rgba=rgba, spec=given, shape=size), [7]
    )
    assert place.tolist() == [expected.top, expected.left, expected.height, expected.width, *expected.image.shape]
    assert np.abs(found - expected.image.reshape(-1)).max() <= 1


def test_a_picture_that_is_too_small_for_the_network_is_refused_by_name(page):
    spec = {"channels": "L", "fit": "native", "scale": 1, "min_size": [16, 16]}
    with pytest.raises(Exception, match="is 40x8 pixels, the network takes at least 16x16; give a larger picture"):
        asked(page, "fit", "m.fitted(a.image, [8, 40, 1], a.spec)", np.uint8, image=picture(8, 40, 1), spec=spec)


@pytest.mark.parametrize("fit_name", ["stretch", "letterbox"])
@pytest.mark.parametrize("size", [(30, 99), (20, 24), (300, 301)], ids=str)
def test_probabilities_are_brought_back_as_by_the_runtime(page, fit_name, size):
    planes = probabilities(2, 32, 48)
    fitted = fit(picture(*size), InputSpec(size=(32, 48), fit=fit_name))
    expected = restore(planes, fitted)
    place = {"top": fitted.top, "left": fitted.left, "inner": [fitted.height, fitted.width]}
    found = asked(
        page,
        "answer",
        "m.restored(a.planes, [2, 32, 48], a.place, a.size)",
        np.float32,
        planes=planes,
        place=place,
        size=size,
    )
    assert np.abs(found.reshape(expected.shape) - expected).max() < 2e-6


OUTPUTS = {
    "one class": OutputSpec(classes=("car",), threshold=0.37),
    "softmax": OutputSpec(classes=("road", "car", "tree", "sky"), activation="softmax"),
    "sigmoids": OutputSpec(classes=("a", "b", "c"), activation="sigmoids", threshold=0.3),
}


@pytest.fixture(params=OUTPUTS.values(), ids=OUTPUTS)
def result(request):
    """An answer of 45x67 pixels."""
    output = request.param
    planes = probabilities(len(output.classes), 67, 45)
    if output.overlapping:
        planes = np.concatenate([probabilities(1, 67, 45, seed) for seed in range(3)]) * 0.6
    return Segmentation(probability=planes.astype(np.float32), image=picture(67, 45), output=output)


def drawn(page, result, view, chosen=None):
    """Draw a view of an answer in the browser, uint8 [height, width, 4]."""
    first = result.output.first_foreground
    chosen = list(range(first, len(result.classes))) if chosen is None else chosen
    output = {"classes": result.classes, "activation": result.output.activation}
    look = {"view": view, "threshold": result.output.threshold, "chosen": chosen}
    call = "m.drawn(a.rgba, a.planes, a.size, a.output, {...LOOK, ...a.look})"
    rgba = np.dstack([result.image, np.full(result.shape, 255, np.uint8)])
    given = {"rgba": rgba, "planes": result.probability, "size": result.shape, "output": output, "look": look}
    return asked(page, "answer", call, np.uint8, **given).reshape(*result.shape, 4)


def test_overlays_are_those_of_the_runtime(page, result):
    assert np.array_equal(drawn(page, result, "overlay")[:, :, :3], result.overlay())


def test_cutouts_are_those_of_the_runtime(page, result):
    found, expected = drawn(page, result, "cutout"), result.cutout(keep_colours=True)
    assert np.array_equal(found[:, :, :3], expected[:, :, :3])
    assert np.abs(found[:, :, 3].astype(int) - expected[:, :, 3]).max() <= 1
    assert ((expected[:, :, 3] > 0) & (expected[:, :, 3] < 255)).mean() > 0.005


def test_probabilities_are_those_of_the_runtime(page, result):
    found, expected = drawn(page, result, "probability"), result.probability_of(None, np.uint8)
    assert np.abs(found[:, :, 0].astype(int) - expected).max() <= 1


def test_the_image_is_shown_as_it_is(page, result):
    assert np.array_equal(drawn(page, result, "image")[:, :, :3], result.image)


def test_masks_are_those_of_the_runtime(page, result):
    output = {"classes": result.classes, "activation": result.output.activation}
    given = {"planes": result.probability, "size": result.shape, "output": output, "threshold": result.output.threshold}
    first = result.output.first_foreground
    call = "m.maskPixels(a.planes, a.size, a.output, a.threshold, a.chosen)"
    found = asked(page, "answer", call, np.uint8, chosen=list(range(first, len(result.classes))), **given)
    expected = result.region() * 255 if result.output.overlapping else np.asarray(result.picture())
    assert np.array_equal(found.reshape(*result.shape, 4)[:, :, 0], expected)


def test_shares_are_those_of_the_runtime(page, result):
    output = {"classes": result.classes, "activation": result.output.activation}
    call = "new Float32Array(m.sharesOf(a.planes, a.pixels, a.output, a.threshold).map((row) => row.share))"
    given = {"planes": result.probability, "pixels": result.shape[0] * result.shape[1], "output": output}
    found = asked(page, "answer", call, np.float32, threshold=result.output.threshold, **given)
    first, count = result.output.first_foreground, result.shape[0] * result.shape[1]
    expected = [result.area(index) / count for index in range(first, len(result.classes))]
    assert found == pytest.approx(expected, abs=1e-6) and min(expected) > 0.01


def test_one_class_alone_is_tinted_where_it_is_the_answer(page, result):
    last = len(result.classes) - 1
    found = drawn(page, result, "mask", [last])[:, :, :3].any(axis=2)
    assert np.array_equal(found, result.region(last))


def test_the_threshold_is_compared_in_float32_as_in_python(page):
    output = OutputSpec(classes=("car",), threshold=0.1)
    planes = np.full((1, 4, 4), np.float32(0.1))
    result = Segmentation(probability=planes, image=picture(4, 4), output=output)
    assert result.area() == 0 and not drawn(page, result, "mask")[:, :, :3].any()
    more = replace(result, probability=np.nextafter(planes, np.float32(1)))
    assert more.area() == 16 and drawn(page, more, "mask")[:, :, 0].min() == 255


@pytest.mark.parametrize("name", ["jpg", "progressive.jpg", "png", "webp", "thumbnail.jpg"])
def test_files_that_end_too_early_are_noticed(page, name):
    kind = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[name.rpartition(".")[2]]
    options = {"progressive": True} if name.startswith("progressive") else {}
    if name.startswith("thumbnail"):
        options["comment"] = encoded(picture(20, 20), "JPEG")  # a whole JPEG file before the picture
    whole = encoded(picture(60, 80), kind, **options)

    def is_cut(content):
        call = "new Float32Array([m.isCut(new Uint8Array(a.content))])"
        return bool(asked(page, "whole", call, np.float32, content=np.frombuffer(content, np.uint8))[0])

    assert not is_cut(whole) and not is_cut(whole + b"more")
    for length in (12, 30, len(whole) // 2, len(whole) - 5):
        assert is_cut(whole[:length]), length


def encoded(pixels, kind, **options):
    """Return the bytes of a file of a format of Pillow's."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()
