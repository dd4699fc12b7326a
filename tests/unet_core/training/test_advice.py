"""Settings that do less than they say."""

from dataclasses import replace

import pytest

from unet_core.training.advice import settings_without_effect


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
