"""Splitting off whole groups of images to validate on: the same everywhere, by the names alone."""

import pytest

from unet_core.data.pairs import Layout, Pair
from unet_core.data.validation_split import doubtful_split, group_of, split_by_group, split_summary


def names(pairs):
    return [pair.name for pair in pairs]


def cars(tmp_path, sizes):
    """Pairs of cars with so many views each, named as Carvana's."""
    return [
        Pair(image=tmp_path / f"car{car:03}_{view + 1:02}.jpg")
        for car, views in enumerate(sizes)
        for view in range(views)
    ]


def groups(pairs):
    return {group_of(pair.name, "_") for pair in pairs}


@pytest.mark.parametrize(
    ("name", "separator", "group"),
    [
        ("fff9b3a5373f_16", "_", "fff9b3a5373f"),
        ("TCGA_CS_4941_3", "_", "TCGA_CS_4941"),
        ("plain", "_", "plain"),
        ("_07", "_", "_07"),
        ("a_1", "", "a_1"),
        ("0006R0_f00930", "_f", "0006R0"),
        ("", "_", ""),
    ],
)
def test_the_group_is_what_is_before_the_last_separator(name, separator, group):
    assert group_of(name, separator) == group


@pytest.mark.parametrize(("cars_", "share", "chosen"), [(318, 0.1, 32), (10, 0.25, 3), (10, 0.9, 9), (2, 0.9, 1)])
def test_whole_cars_are_split_off(tmp_path, cars_, share, chosen):
    pairs = cars(tmp_path, [16] * cars_)
    train, val = split_by_group(pairs, Layout(val_share=share))
    assert len(val) == 16 * chosen
    assert groups(train).isdisjoint(groups(val))
    assert sorted(names(train) + names(val)) == names(pairs)
    assert names(val) == sorted(names(val)) and names(train) == sorted(names(train))


def test_the_split_is_the_same_everywhere(tmp_path):
    """Pinned: another choice would put images that older models were trained on among those they are measured on."""
    _, val = split_by_group(cars(tmp_path, [2] * 20), Layout())
    assert names(val) == ["car000_01", "car000_02", "car019_01", "car019_02"]


def test_one_very_large_group_is_trained_on(tmp_path):
    """Whatever its hash: without that, every 21st such data set would be validated on nine tenths of it."""
    for place in range(21):
        train, val = split_by_group(cars(tmp_path, [180 if car == place else 1 for car in range(21)]), Layout())
        assert (len(train), len(val)) == (180, 20)


def test_where_all_groups_are_larger_than_the_share_the_smallest_is_split_off(tmp_path):
    train, val = split_by_group(cars(tmp_path, [5, 4, 6]), Layout())
    assert (groups(train), groups(val)) == ({"car000", "car002"}, {"car001"})


def test_more_images_move_few_of_the_old_ones(tmp_path):
    sizes = [16] * 100
    before = set(names(split_by_group(cars(tmp_path, sizes), Layout())[1]))
    another_view = set(names(split_by_group(cars(tmp_path, [*sizes[:-1], 17]), Layout())[1]))
    another_car = set(names(split_by_group(cars(tmp_path, [*sizes, 16]), Layout())[1]))
    twice = set(names(split_by_group(cars(tmp_path, sizes * 2), Layout())[1]))
    assert len(before) == 160
    assert len(before - another_view) <= 16
    assert len(before - another_car) <= 16
    # Of twice as many cars a tenth is split off too, and half of it are old ones: no choice keeps all on their sides.
    assert len(before & twice) >= 64


def test_without_a_separator_every_image_is_by_itself(tmp_path):
    pairs = cars(tmp_path, [10, 10])
    train, val = split_by_group(pairs, Layout(group=""))
    assert (len(train), len(val)) == (18, 2)
    assert len(split_by_group([Pair(image=tmp_path / f"{index}.jpg") for index in range(20)], Layout())[1]) == 2


def told(tmp_path, names_, **layout):
    """The summary of a split, and the note on it."""
    pairs = [Pair(image=tmp_path / f"{name}.jpg") for name in names_]
    sides = split_by_group(pairs, Layout(**layout))
    return split_summary(*sides, Layout(**layout)), doubtful_split(*sides, Layout(**layout))


def numbered(*words, count=20):
    return [f"{word}_{index + 1:03}" for word in words for index in range(count)]


HINT = "; if names with the same beginning up to '_' are not views of one thing, give --group ''"


@pytest.mark.parametrize(("prefix", "shown"), [("ISIC", "ISIC_"), ("image", "image_"), ("scan_a", "scan_a_")])
def test_where_one_prefix_stands_for_all_images_they_count_alone(tmp_path, prefix, shown):
    assert told(tmp_path, numbered(prefix)) == (
        f"validation: 2 of 20 images split off, image by image: all names begin with '{shown}'",
        None,
    )


def test_a_split_that_misses_its_share_is_told_with_the_flag(tmp_path):
    summary, note = told(tmp_path, numbered("cat", "dog"))
    assert summary == "validation: 20 of 40 images, 1 group split off"
    assert note == (
        "validation has 20 of 40 images where --val-share asks for 4: all that are named cat_, and training has none "
        f"of these{HINT}"
    )
    _, note = told(tmp_path, [*numbered("ISIC", count=199), "other"])
    assert note == (
        "validation has 1 of 200 images where --val-share asks for 20: all that are named other, and training has none "
        f"of these{HINT}"
    )
    assert told(tmp_path, numbered("cat", "dog"), group="")[1] is None


def test_a_class_of_names_that_is_validated_on_as_a_whole_is_told(tmp_path):
    words = ["bear", "bird", "cat", "cow", "dog", "elk", "fox", "hen", "owl", "pig", "rat", "yak"]
    assert told(tmp_path, numbered(*words)) == (
        "validation: 20 of 240 images, 1 group split off",
        f"validation has all that are named owl_, and training has none of these{HINT}",
    )
    _, note = told(tmp_path, numbered(*words), val_share=0.5)
    assert note.startswith("validation has all that are named bird_, cat_, ") and " and 1 more, and tra" in note


@pytest.mark.parametrize("sizes", [[16] * 318, [16] * 10, [1] * 3, [2, 1], [180, *[1] * 20]])
def test_a_split_by_things_with_numbers_needs_no_note(tmp_path, sizes):
    pairs = cars(tmp_path, sizes)
    assert doubtful_split(*split_by_group(pairs, Layout()), Layout()) is None
