"""The page at / in Chromium: it shows the server's answers, and a person can use it."""

import threading

import numpy as np
import pytest
from browser import browsing, drop, finished, give, is_ours, opened, pixels
from PIL import Image
from served import served
from waiting import wait_until

from runtime.page.files import server_files
from runtime.predictor import Predictor

KEY = "12345678"


@pytest.fixture(scope="module")
def browser():
    with browsing() as found:
        yield found


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Three pictures of different sizes, with edges."""
    folder = tmp_path_factory.mktemp("photographs")
    for index, size in enumerate([(40, 60), (30, 20), (50, 70)]):
        values = np.random.default_rng(index).integers(0, 256, (size[0] // 10, size[1] // 10, 3), np.uint8)
        large = Image.fromarray(values).resize(size[::-1], Image.Resampling.BICUBIC)
        large.save(folder / f"picture{index}.png")
    return sorted(folder.iterdir())


@pytest.fixture
def page(browser, server):
    found = opened(browser, f"{server.url}/")
    yield found
    problems = found.problems
    found.context.close()
    assert problems == []


@pytest.fixture
def expected(models):
    """Return the runtime's answer of the model "brightness"."""
    predictor = Predictor(models["brightness"], "cpu")
    return lambda picture, **options: predictor.predict(picture, **options)


def test_overlay_shares_and_times_are_the_servers(page, photographs, expected):
    give(page, *photographs)
    result = expected(photographs[0])
    assert np.array_equal(pixels(page)[:, :, :3], result.overlay())
    (name,) = result.classes
    share = result.area() / result.mask.size
    assert page.inner_text("#shares tr").split("\t") == [name, f"{100 * share:.1f} %"]
    assert page.locator("#canvas").get_attribute("aria-label") == f"Overlay of picture0.png: {name} {100 * share:.1f} %"
    for stage in ("receive", "wait", "decode", "fit", "infer", "restore", "encode"):
        assert f"{stage} " in page.inner_text("#times"), stage
    assert page.inner_text("#device").startswith("cpu (CPUExecutionProvider); golden sample off by ")
    assert page.inner_text("#status") == "3 pictures done"


def test_the_slider_asks_the_server_nothing(page, photographs, expected):
    give(page, photographs[0])
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    slider = page.get_by_role("slider", name="Threshold")
    slider.focus()
    for _ in range(20):
        page.keyboard.press("ArrowLeft")
    page.get_by_label("Mask", exact=True).check()
    finished(page)
    assert page.inner_text("#threshold-value") == "0.30" and asked == []
    mask = expected(photographs[0], threshold=0.3).mask
    assert mask.sum() > expected(photographs[0]).mask.sum()
    assert np.array_equal(pixels(page)[:, :, :3].any(axis=2), mask > 0)


def test_saved_files_are_the_servers_at_the_threshold_of_the_slider(page, photographs, expected, tmp_path):
    give(page, photographs[0])
    page.get_by_role("slider", name="Threshold").focus()
    page.keyboard.press("Home")
    result = expected(photographs[0], threshold=0.01)
    for view, pixels_of in {"mask": result.mask * 255, "overlay": result.overlay(), "cut-out": result.cutout()}.items():
        with page.expect_download() as download:
            page.get_by_role("button", name=f"Save {view}").click()
        assert download.value.suggested_filename == f"picture0_{view.replace('-', '')}.png"
        download.value.save_as(tmp_path / "saved.png")
        with Image.open(tmp_path / "saved.png") as saved:
            assert np.array_equal(saved.convert(Image.fromarray(pixels_of).mode), pixels_of)


def test_another_model_answers_all_pictures_anew(page, photographs, models):
    give(page, *photographs)
    page.get_by_role("combobox", name="Model").select_option("softmax")
    finished(page)
    result = Predictor(models["softmax"], "cpu").predict(photographs[0])
    assert np.array_equal(pixels(page)[:, :, :3], result.overlay())
    assert page.inner_text("h1") == page.title().partition(" ")[0] == "softmax"
    assert page.is_hidden("#threshold-row")


def test_the_servers_words_reach_the_person(page, photographs, tmp_path):
    (tmp_path / "cut.png").write_bytes(photographs[0].read_bytes()[:-40])
    give(page, tmp_path / "cut.png", photographs[1])
    assert page.inner_text("#progress") == "1 picture done, 1 failed"
    assert page.inner_text("#result-state").startswith("cut.png: ") and "truncated" in page.inner_text("#result-state")
    page.problems.clear()  # Chromium logs the status 400


def test_a_format_that_the_browser_does_not_show(page, tmp_path, expected):
    grey = np.arange(12 * 16, dtype=np.uint8).reshape(12, 16)
    Image.fromarray(np.dstack([grey] * 3)).save(tmp_path / "scan.tif")
    give(page, tmp_path / "scan.tif")
    assert page.inner_text("#caption").startswith(
        "16x12 pixels; this browser does not show the format, so the picture has the server's overlay in it"
    )
    page.get_by_label("Image", exact=True).check()
    finished(page)
    assert np.array_equal(pixels(page)[:, :, :3], expected(tmp_path / "scan.tif").overlay())


def test_a_large_picture_is_shown_smaller_and_saved_whole(page, tmp_path):
    Image.fromarray(np.full((900, 2000, 3), 200, np.uint8)).save(tmp_path / "large.png")
    give(page, tmp_path / "large.png")
    assert page.inner_text("#caption") == "2000x900 pixels, shown at 1600x720"
    with page.expect_download() as download:
        page.get_by_role("button", name="Save mask").click()
    download.value.save_as(tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as mask:
        assert mask.size == (2000, 900)


def test_a_server_with_a_key_asks_for_it(browser, models, photographs):
    with served({"brightness": models["brightness"]}, api_key=KEY) as server:
        page = browser.new_page()
        page.goto(server.url)
        field = page.get_by_label("API key of the server")
        drop(page, photographs[1])  # the model is not open yet
        field.fill("wrong key")
        page.keyboard.press("Enter")
        page.wait_for_selector("#problem:not([hidden])")
        assert page.is_hidden("main")
        assert page.inner_text("#problem") == "This is not the server's key."
        field.fill(KEY)
        page.keyboard.press("Enter")
        page.wait_for_selector("main:not([hidden])")
        assert page.is_hidden("#problem")
        finished(page)
        assert page.inner_text("#progress") == "1 picture done"
        give(page, photographs[0])
        assert page.inner_text("#progress") == "2 pictures done"
        page.close()


def test_a_busy_server_is_asked_again(browser, held, photographs):
    server, gate = held(queue=1)
    page = opened(browser, f"{server.url}/")
    refused = threading.Event()
    page.on("response", lambda answer: refused.set() if answer.status == 429 else None)
    page.locator("#files").set_input_files([str(photograph) for photograph in photographs])
    page.wait_for_event("response", lambda answer: answer.status == 429)
    gate.open()
    finished(page)
    assert page.inner_text("#progress") == "3 pictures done"
    page.context.close()


def test_the_files_are_open_to_all_and_nothing_else_is(models):
    with served({"brightness": models["brightness"]}, api_key=KEY) as server:
        for path, file in server_files().items():
            reply = server.ask(path)
            assert (reply.status, reply.body, reply.headers["content-type"]) == (200, file.content, file.media_type)
            assert reply.headers["content-security-policy"].startswith("default-src 'self';")
        for path in ("/page/files.py", "/page/", "/page/../app.py", "/page/..%2fapp.py", "/page.html", "//etc/passwd"):
            assert server.ask(path).status == 404, path


def test_only_addresses_of_the_page_itself_are_its_own():
    assert is_ours("http://127.0.0.1:1/x", "http://127.0.0.1:1/") and not is_ours("http://cdn/x", "http://127.0.0.1:1/")


def test_a_file_that_was_replaced_is_told(browser, models, photographs, tmp_path):
    """The page draws by the card that it has: with classes of another file it would draw nonsense."""
    path = tmp_path / "model.onnx"
    path.write_bytes(models["brightness"].read_bytes())
    with served({"m": path}) as server:
        page = opened(browser, f"{server.url}/")
        (tmp_path / "new").write_bytes(models["softmax"].read_bytes())
        before = server.service.store.models["m"].current
        (tmp_path / "new").replace(path)
        wait_until(lambda: server.service.store.models["m"].current is not before)
        give(page, photographs[0])
        assert page.inner_text("#result-state") == (
            "picture0.png: the server has another file of this model now; reload the page"
        )
        page.context.close()
