"""Exported pages in Chromium: they answer as the runtime does, and a person can use them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from browser import browsing, finished, give, onnxruntime_web, opened, pixels, serving
from onnx_files import int8_graph, write_onnx
from PIL import Image

from export.web import write_page
from runtime.model_file.golden import synthetic_image
from runtime.predictor import Predictor


@pytest.fixture(scope="module")
def browser():
    with browsing() as found:
        yield found


@pytest.fixture(scope="module")
def package():
    return onnxruntime_web()


FILES = Path(__file__).parents[1] / "data" / "v0.1" / "models"
"""Files that version 0.1 wrote."""


def changed(**parts):
    """Return a function that changes fields of parts of a card."""
    return lambda card: replace(
        card, **{name: replace(getattr(card, name), **fields) for name, fields in parts.items()}
    )


CASES = {
    "one-class": {},
    "softmax-letterbox": {"classes": 3, "of_card": changed(input={"fit": "letterbox", "mean": (0.2, 0.4, 0.6)})},
    "sigmoids-native": {
        "classes": 3,
        "of_card": changed(input={"fit": "native", "scale": 0.5}, output={"activation": "sigmoids", "threshold": 0.45}),
    },
    "grey-fixed": {"in_channels": 1, "fixed_batch": 2, "of_card": changed(input={"levels": (20, 200)})},
    "int8": {"precision": "int8", "graph": "u8"},
    "fp16": {"file": "fp16.onnx"},
}
"""Models; how pictures are fitted and answers drawn is tested without a model in tests/runtime/page."""


@pytest.fixture(scope="module")
def sites(tmp_path_factory, package):
    """A page for each case, beside its model: functions of the names."""
    folder = tmp_path_factory.mktemp("sites")

    def site(name):
        if not (folder / name).exists():
            case = dict(CASES[name])
            if "file" in case:
                shutil.copyfile(FILES / case["file"], folder / f"{name}.onnx")
            else:
                if "graph" in case:
                    case["graph"] = int8_graph(case["graph"])
                write_onnx(folder / f"{name}.onnx", size=(64, 96), **case)
            write_page(folder / f"{name}.onnx", folder / name, onnxruntime_web=package)
        return folder / name

    return site


@pytest.fixture(scope="module")
def pages(browser, sites):
    """Each case's page, open: a function of the names. Opening takes seconds, so tests share them."""
    found = {}
    with serving(sites("one-class").parent) as address:

        def page(name):
            if name not in found:
                found[name] = opened(browser, f"{address}{sites(name).name}/")
            begin_again(found[name])
            return found[name]

        yield page
        for one in found.values():
            one.context.close()


def begin_again(page):
    """Bring an open page back to its beginning."""
    page.problems.clear()
    for button in ("Remove all", "Back to the model's"):
        if page.get_by_role("button", name=button).is_visible():
            page.get_by_role("button", name=button).click()
    page.get_by_label("Overlay", exact=True).check()
    finished(page)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three pictures of different sizes."""
    folder = tmp_path_factory.mktemp("pictures")
    for index, size in enumerate([(120, 180), (90, 60), (200, 310)]):
        blurred = cv2.GaussianBlur(synthetic_image(*size, 3, seed=index), (0, 0), 2)
        Image.fromarray(blurred).save(folder / f"picture{index}.png")
    return sorted(folder.iterdir())


@pytest.mark.parametrize("name", [name for name in CASES if name != "fp16"])
def test_a_page_answers_as_the_runtime_does(pages, sites, pictures, name):
    page = pages(name)
    give(page, pictures[0])
    page.get_by_label("Probability", exact=True).check()
    finished(page)
    found = pixels(page)[:, :, 0].astype(int)
    assert page.problems == []
    predictor = Predictor(sites(name).with_suffix(".onnx"), "cpu")
    expected = predictor.predict(pictures[0]).probability_of(None, np.uint8)
    assert found.shape == expected.shape == (120, 180)
    assert np.ptp(expected) > 3
    assert np.abs(found - expected).max() <= 2


def test_a_file_in_fp16_answers_its_golden_sample(pages):
    page = pages("fp16")
    assert float(page.inner_text("#device").rpartition("off by ")[2]) < 1e-3
    assert page.problems == []


@pytest.fixture
def page(pages):
    """The page of a model of one class."""
    found = pages("one-class")
    yield found
    assert found.problems == []


def answer(sites, picture, threshold=0.5):
    return Predictor(sites("one-class").with_suffix(".onnx"), "cpu").predict(picture, threshold=threshold)


def test_the_threshold_is_a_slider_that_changes_all_pictures(page, sites, pictures):
    give(page, *pictures)
    probability = answer(sites, pictures[0]).probability[0]
    threshold = float(np.round(np.quantile(probability, 0.3), 2))
    slider = page.get_by_role("slider", name="Threshold")
    slider.evaluate("(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }", threshold)
    page.get_by_label("Mask", exact=True).check()
    finished(page)
    expected = probability > threshold
    wrong = pixels(page)[:, :, :3].any(axis=2) != expected
    assert wrong.mean() < 0.01 and np.abs(probability[wrong] - threshold).max(initial=0) < 0.01
    assert page.inner_text("#threshold-value") == f"{threshold:.2f}"
    shown = float(page.locator("#shares td").inner_text().removesuffix(" %"))
    assert shown == pytest.approx(100 * expected.mean(), abs=1)
    assert page.locator("#list button").first.inner_text().splitlines()[-1].endswith(f" {shown:.1f} %")
    page.get_by_role("button", name="Back to the model's 0.5").click()
    finished(page)
    assert page.inner_text("#threshold-value") == "0.50"


def test_all_views_and_files_by_the_keyboard_alone(page, sites, pictures, tmp_path):
    give(page, pictures[0])
    page.get_by_label("Overlay", exact=True).focus()
    names = []
    for _ in range(4):
        page.keyboard.press("ArrowDown")
        finished(page)
        names.append(page.locator("#canvas").get_attribute("aria-label").partition(" of ")[0])
    assert names == ["Cut-out", "Probability", "Mask", "Image"]
    assert np.array_equal(pixels(page)[:, :, :3], np.asarray(Image.open(pictures[0])))
    result = answer(sites, pictures[0])
    for view, expected in {"mask": result.mask * 255, "cut-out": result.cutout()[:, :, 3]}.items():
        page.get_by_role("button", name=f"Save {view}").focus()
        with page.expect_download() as download:
            page.keyboard.press("Enter")
        assert download.value.suggested_filename == f"picture0_{view.replace('-', '')}.png"
        download.value.save_as(tmp_path / "saved.png")
        saved = np.asarray(Image.open(tmp_path / "saved.png"))[:, :, 3 if view == "cut-out" else 0]
        assert (np.abs(saved.astype(int) - expected) > 8).mean() < 0.01


def test_the_list_is_walked_with_arrows(page, pictures):
    give(page, *pictures)
    assert page.inner_text("#progress") == page.inner_text("#status") == "3 pictures done"
    current = page.get_by_role("button", name="picture0.png")
    current.focus()
    for key, name in {"ArrowRight": "picture1.png", "End": "picture2.png", "Home": "picture0.png"}.items():
        page.keyboard.press(key)
        finished(page)
        assert page.inner_text("#result-name") == name
        assert page.evaluate("document.activeElement.textContent").startswith(name)
        assert page.locator("#list button[aria-current=true]").count() == 1
        assert page.locator("#list button[tabindex='0']").count() == 1


def test_the_size_of_a_large_picture_is_told_and_its_file_has_it(page, tmp_path):
    Image.fromarray(synthetic_image(900, 2000, 3, seed=4)).save(tmp_path / "large.jpg")
    give(page, tmp_path / "large.jpg")
    assert page.inner_text("#caption") == "2000x900 pixels, shown at 1600x720"
    with page.expect_download() as download:
        page.get_by_role("button", name="Save mask").click()
    download.value.save_as(tmp_path / "mask.png")
    assert np.asarray(Image.open(tmp_path / "mask.png")).shape[:2] == (900, 2000)


def test_files_that_are_no_pictures_are_told_and_the_others_go_on(page, pictures, tmp_path):
    (tmp_path / "cut.png").write_bytes(pictures[0].read_bytes()[:-20])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "notes.txt").write_text("x")
    give(page, tmp_path / "cut.png", tmp_path / "text.png", tmp_path / "notes.txt", pictures[1])
    assert page.inner_text("#problem") == "1 file is no picture and was left out."
    assert page.inner_text("#progress") == "1 picture done, 2 failed"
    assert page.inner_text("#result-state") == (
        "cut.png: is truncated: its file ends before the picture does; copy it again"
    )
    page.get_by_role("button", name="text.png").click()
    finished(page)
    assert page.inner_text("#result-state") == (
        "text.png: is damaged, or of a format that this browser does not show; give a JPEG, PNG or WebP"
    )
    page.get_by_role("button", name="picture1.png").click()
    finished(page)
    assert page.inner_text("#caption") == "60x90 pixels"
    page.get_by_role("button", name="Remove all").click()
    finished(page)
    assert page.is_visible("text=No picture yet.") and page.is_hidden("#problem")


def test_transparency_and_turned_photographs(page, sites, pictures, tmp_path):
    image = Image.open(pictures[0])
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95, subsampling=0)
    clear = np.dstack([np.asarray(image), np.full((120, 180), 255, np.uint8)])
    clear[:10, :, 3] = 0
    Image.fromarray(clear).save(tmp_path / "clear.png")
    give(page, tmp_path / "turned.jpg", tmp_path / "clear.png")
    assert page.inner_text("#caption") == "120x180 pixels"
    page.get_by_label("Probability", exact=True).check()
    finished(page)
    expected = answer(sites, tmp_path / "turned.jpg").probability_of(None, np.uint8)
    assert np.abs(pixels(page)[:, :, 0].astype(int) - expected).max() <= 2
    page.get_by_role("button", name="clear.png").click()
    finished(page)
    assert page.inner_text("#caption") == (
        "180x120 pixels; has transparent pixels, whose hidden colours a browser does not give; they count as black"
    )


def test_it_fits_a_narrow_screen(pages, pictures):
    page = pages("softmax-letterbox")
    give(page, *pictures)
    page.set_viewport_size({"width": 320, "height": 640})
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, background[4:-1].split(","))) > 384) == (scheme == "light")
    classes = page.get_by_role("combobox", name="Class to show").locator("option")
    assert classes.all_inner_texts() == ["all", "c1", "c2"]
    assert page.is_hidden("#threshold-row")
    assert page.problems == []


@pytest.mark.slow
def test_threads_where_the_server_permits_them(browser, sites, pictures):
    with serving(sites("one-class"), isolated=True) as address:
        page = opened(browser, address)
        cores = min(page.evaluate("navigator.hardwareConcurrency"), 8)
        give(page, pictures[0])
        assert f"WebAssembly, {cores} thread" in page.inner_text("#device") and page.problems == []
        page.context.close()


def refusal(browser, folder):
    """What a page says that cannot use its model."""
    with serving(folder) as address:
        page = opened(browser, address)
        text = page.locator("#problem").inner_text()
        assert page.is_hidden("main") and page.inner_text("#device") == "The model cannot be used."
        page.context.close()
    return text


def test_a_page_without_onnxruntime_web_says_how_to_get_it(browser, tmp_path):
    write_onnx(tmp_path / "model.onnx")
    write_page(tmp_path / "model.onnx", tmp_path / "site")
    assert refusal(browser, tmp_path / "site").startswith(
        "ort/: onnxruntime-web is missing; run `npm install onnxruntime-web` and copy ort.wasm.min.mjs, "
    )


def test_a_file_that_answers_otherwise_than_its_golden_sample_is_refused(browser, sites, tmp_path, package):
    write_onnx(tmp_path / "model.onnx", size=(64, 96))
    index = write_page(tmp_path / "model.onnx", tmp_path / "site", onnxruntime_web=package)
    write_onnx(index.parent / "model.onnx", size=(64, 96), widths=(6, 12))  # of another export
    content = json.loads((index.parent / "model.json").read_text())
    assert content["golden"]["limit"] == 1e-4
    assert refusal(browser, index.parent).startswith("model.onnx: answers its golden sample wrongly here (off by ")


@pytest.mark.slow
def test_a_damaged_file_is_refused(browser, tmp_path, package):
    write_onnx(tmp_path / "model.onnx")
    index = write_page(tmp_path / "model.onnx", tmp_path / "site", onnxruntime_web=package)
    (index.parent / "model.onnx").write_bytes(b"damaged")
    assert refusal(browser, index.parent).startswith("model.onnx: cannot be opened by onnxruntime-web (")


def test_a_page_without_a_server_says_what_it_needs(browser, tmp_path):
    write_onnx(tmp_path / "model.onnx")
    index = write_page(tmp_path / "model.onnx", tmp_path / "site")
    page = browser.new_page()
    page.goto(index.as_uri())
    text = page.wait_for_selector("#not-started", state="visible").inner_text()
    assert text.startswith("This page has not started. It needs JavaScript and a web server: in its folder run")
    page.close()
