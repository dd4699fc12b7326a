"""The setting `--levels`."""

import pytest

from runtime.errors import ConfigError
from unet_core.data.levels import parse_levels


@pytest.mark.parametrize(("text", "levels"), [("0,4095", (0, 4095)), ("100, 65535", (100, 65_535)), ("auto", None)])
def test_the_setting_is_read(text, levels):
    assert parse_levels(text) == levels


@pytest.mark.parametrize("text", ["", "12", "4095,0", "7,7", "0,65536", "0;4095", "-1,5", "0,1,2", "Auto", "٣,٤"])
def test_other_settings_are_refused(text):
    with pytest.raises(ConfigError) as caught:
        parse_levels(text)
    assert str(caught.value) == (
        f"--levels {text}: expected auto, full, percentile or LOW,HIGH: the stored values that become 0 and 255, "
        "whole numbers up to 65535, the lower one first, such as 0,4095"
    )
