"""Settings that do less than they say."""

from dataclasses import replace

import pytest

from unet_core.training.advice import advice_on_one_sided, settings_without_effect


def test_settings_that_do_what_they_say_need_no_note(config):
    assert settings_without_effect(config, 6) == []
    assert settings_without_effect(replace(config, optimizer="sgd", momentum=0.5), 6) == []
    assert settings_without_effect(replace(config, schedule="plateau", plateau_epochs=2), 6) == []


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"momentum": 0.5}, "--momentum 0.5: has no effect; it needs --optimizer sgd or rmsprop"),
        ({"plateau_epochs": 2}, "--plateau-epochs 2: has no effect; it needs --schedule plateau"),
        ({"foreground_share": 0.5}, "--foreground-share 0.5: has no effect; it needs --fit native"),
        ({"val_share": 0.5}, "--val-share 0.5: has no effect; it needs data without val_images/"),
        ({"cache_dir": "c", "cache_gb": 0.0}, "--cache-dir c: has no effect; it needs --cache-gb above 0"),
        ({"warmup_epochs": 2.0}, "--warmup-epochs 2: --epochs is 2, so --lr is never reached"),
        ({"batch_size": 7}, "a step takes 7 images, but there are only 6 to train on: each epoch is one step of 6"),
        ({"accumulate": 2}, "a step takes 8 images, but there are only 6 to train on: each epoch is one step of 6"),
    ],
    ids=str,
)
def test_a_setting_without_effect_is_named(config, change, note):
    assert settings_without_effect(replace(config, **change), 6) == [note]


def epochs(*dices):
    return [{"pixel_dice": dice} for dice in dices]


@pytest.mark.parametrize(
    ("change", "history", "rises", "advice"),
    [
        ({}, epochs(0.1), True, "start again with a lower --lr, such as 0.0001"),
        ({}, epochs(0.1, 0.2), False, "it took only 4 steps: give more --epochs or a smaller --batch-size"),
        ({"batch_size": 1}, epochs(0.1), False, "it took only 6 steps: give more --epochs"),
        ({"batch_size": 6}, epochs(0.1), False, "it took only 1 step: give more --epochs or a smaller --batch-size"),
        ({}, epochs(*[0.1] * 149, 0.2), False, "the last epoch was the best one: give more --epochs"),
        (
            {},
            epochs(0.2, *[0.1] * 149),
            False,
            "try --loss bce+dice, which counts a rare class as much as a frequent one, or another --lr",
        ),
        (
            {"classes": ("sky", "car")},
            epochs(0.2, *[0.1] * 149),
            False,
            "try --loss ce+dice, which counts a rare class as much as a frequent one, or another --lr",
        ),
        (
            {"loss": "dice"},
            epochs(0.2, *[0.1] * 149),
            False,
            "look at the masks in saved_images, and try another --lr",
        ),
    ],
)
def test_answers_of_one_class_only_have_the_advice_that_fits(config, change, history, rises, advice):
    """Six images in batches of four are two steps an epoch, so 150 epochs are 300."""
    assert advice_on_one_sided(replace(config, **change), 6, history, rises) == advice
