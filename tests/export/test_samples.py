from dataclasses import replace

import numpy as np
import pytest
from folders import write_pair
from PIL import Image

from export.samples import MOST_IMAGES, load_pictures, load_samples, spread, synthetic_samples
from runtime.card import OutputSpec
from runtime.errors import DataError
from runtime.image_files.limits import Limits
from unet_core.data.labels import IGNORED
from unet_core.data.pairs import Layout
from unet_core.reporting.progress import Display


def names(records):
    return [pair.image.stem for pair in records.pairs]


def test_validation_images_are_measured_on_and_training_images_calibrated_on(data, card):
    samples = load_samples(data, card)
    assert (samples.labelled, samples.images) == (True, "data")
    assert names(samples.measured) == ["val0", "val1", "val2"]
    assert names(samples.calibration) == [f"car{index}" for index in range(6)]
    picture, truth = samples.measured[0]
    assert (picture.shape, truth.shape, truth.max()) == ((*card.input.size, 3), (32, 48), 1)


def test_images_of_too_many_pixels_are_refused(data, card):
    text = r"has 48 x 32 pixels, .*, or allow more with limits=runtime\.Limits\.for_pixels\(1536\): "
    for call in (load_samples, lambda *given, **named: load_pictures(*given, 5, **named)):
        with pytest.raises(DataError, match=text):
            call(data, card, limits=Limits(pixels=1_535))
        call(data, card, limits=Limits(pixels=1_536))


def test_without_validation_images_they_are_split_off_as_in_training(data, card):
    for folder in ("val_images", "val_masks"):
        for path in (data / folder).iterdir():
            path.unlink()
        (data / folder).rmdir()
    samples = load_samples(data, card, layout=Layout(val_share=0.4, group=""))
    assert samples.labelled
    assert sorted([*names(samples.measured), *names(samples.calibration)]) == [f"car{index}" for index in range(6)]
    assert 1 <= len(samples.measured) <= 3


def test_validation_images_alone_serve_for_both(tmp_path, card):
    write_pair(tmp_path, "val", "only")
    samples = load_samples(tmp_path, card)
    assert samples.labelled
    assert names(samples.measured) == names(samples.calibration) == ["only"]


def test_what_cannot_be_used_is_left_out_if_asked_for(data, card, capsys):
    image = data / "train_images" / "car1.jpg"
    image.write_bytes(image.read_bytes()[:500])
    with pytest.raises(DataError, match=r"^1 of 9 pairs cannot be used"):
        load_samples(data, card)
    samples = load_samples(data, card, skip_bad=True, display=Display())
    assert names(samples.calibration) == ["car0", "car2", "car3", "car4", "car5"]
    assert capsys.readouterr().err.startswith("note: --skip-bad: 1 of 9 pairs left out: is ")
    for path in (data / "val_masks").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"^none of 3 pairs can be used, fix them: has no mask, expected NAME_mask"):
        load_samples(data, card, skip_bad=True)


def test_any_folder_of_images_serves_without_masks(data, card):
    samples = load_samples(data / "train_images", card)
    assert not samples.labelled
    assert names(samples.measured) == names(samples.calibration) == [f"car{index}" for index in range(6)]
    assert set(np.unique(samples.measured[0][1])) == {IGNORED}


def test_masks_are_not_read_where_classes_overlap(data, card, capsys):
    output = OutputSpec(classes=("hair", "hat"), activation="sigmoids")
    several = replace(card, architecture=replace(card.architecture, classes=2), output=output)
    for path in (data / "val_masks").iterdir():
        path.write_bytes(b"no mask")
    samples = load_samples(data, several, display=Display())
    assert not samples.labelled and set(np.unique(samples.measured[0][1])) == {IGNORED}
    assert names(samples.measured) == ["val0", "val1", "val2"]
    assert names(samples.calibration) == [f"car{index}" for index in range(6)]
    line = "--data: masks hold one class for each pixel, and the network's overlap, so only images are used"
    assert capsys.readouterr().err.count(line) == 1


def test_values_that_do_not_count_are_those_of_the_run(tmp_path, card):
    write_pair(tmp_path, "val", "v", mask_suffix=".png")
    mask = np.array(Image.open(tmp_path / "val_masks" / "v.png"))
    mask[:3] = 7
    Image.fromarray(mask).save(tmp_path / "val_masks" / "v.png")
    assert (load_samples(tmp_path, card, ignore_index=7).measured[0][1][:3] == IGNORED).all()
    with pytest.raises(DataError, match="1 of 1 pairs cannot be used"):
        load_samples(tmp_path, card)
    assert len(load_pictures(tmp_path, card, 8)) == 1  # masks are not looked at


def test_classes_that_do_not_begin_with_0_are_those_of_the_run(tmp_path, card):
    output = OutputSpec(classes=("sky", "road"), activation="softmax")
    two = replace(card, architecture=replace(card.architecture, classes=2), output=output)
    write_pair(tmp_path, "val", "v", mask_suffix=".png")
    mask = tmp_path / "val_masks" / "v.png"
    Image.fromarray(np.array(Image.open(mask)) // 255 + 1).save(mask)
    truth = load_samples(tmp_path, two, layout=Layout(class_offset=1)).measured[0][1]
    assert set(np.unique(truth)) == {0, 1}
    with pytest.raises(DataError, match="1 of 1 pairs cannot be used"):
        load_samples(tmp_path, two)


@pytest.mark.parametrize("load", [load_samples, lambda data, card: load_pictures(data, card, 8)])
def test_no_folder_no_images_and_a_damaged_image_are_one_line_each(tmp_path, card, load):
    with pytest.raises(DataError, match=r"^--data \S*nowhere: no such folder; expected images, or a data set with"):
        load(tmp_path / "nowhere", card)
    with pytest.raises(DataError, match=r"^--data \S+: has no images; expected \.jpg or \.png files, or train_images/"):
        load(tmp_path, card)
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8 no picture")
    with pytest.raises(DataError, match=r"^1 of 1 pairs cannot be used.*a\.jpg") as caught:
        load(tmp_path, card)
    assert "\n" not in str(caught.value)


def test_at_most_a_hundred_are_used_spread_over_all(tmp_path, card):
    Image.new("RGB", (8, 8)).save(tmp_path / "000.png")
    for index in range(1, 250):
        (tmp_path / f"{index:03}.png").write_bytes((tmp_path / "000.png").read_bytes())
    used = names(load_samples(tmp_path, card).measured)
    assert len(used) == MOST_IMAGES
    assert (used[0], used[-1]) == ("000", "249")
    assert len(load_pictures(tmp_path, card, 3)) == 3


def test_spread():
    assert spread(range(10), 4) == [0, 3, 6, 9]
    assert spread(range(2), 4) == [0, 1]
    assert spread([], 4) == []


def test_synthetic_pictures_have_the_trained_size_and_no_labels_that_count(card):
    samples = synthetic_samples(card)
    assert (samples.labelled, samples.images) == (False, "synthetic")
    assert {picture.shape for picture in samples.pictures(3)} == {(*card.input.size, 3)}
    assert len(samples.pictures(3)) == 3
