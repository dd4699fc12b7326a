"""The golden sample: what goes in comes out, and damage is told from a wrong answer."""

import base64
import json
import tracemalloc
import zlib
from dataclasses import replace

import numpy as np
import pytest

from runtime.card import InputSpec, ModelCard, ModuleConfig, OutputSpec, Parity, Proof, ProofRow
from runtime.errors import ModelError
from runtime.model_file.golden import (
    GOLDEN_SIZE,
    MAX_BYTES,
    Golden,
    allowed_error,
    golden_image,
    golden_size,
    synthetic_image,
    tf32_tolerance,
)


@pytest.fixture
def golden():
    random = np.random.default_rng(3)
    return Golden(
        image=random.integers(0, 256, (5, 7, 3), np.uint8), probability=random.random((2, 5, 7), dtype=np.float32)
    )


def packed(raw, shape):
    return {"shape": shape, "zlib": base64.b64encode(zlib.compress(raw)).decode()}


def changed(golden, **changes):
    return json.dumps(json.loads(golden.to_json()) | changes)


def test_golden_round_trips_bit_for_bit(golden):
    again = Golden.from_json(golden.to_json())
    assert again.image.dtype == np.uint8
    assert again.probability.dtype == np.float32
    assert np.array_equal(again.image, golden.image)
    assert np.array_equal(again.probability, golden.probability)
    assert again.to_json() == golden.to_json()


def test_further_samples_and_the_error_in_tf32_round_trip(golden):
    other = Golden(image=255 - golden.image, probability=golden.probability / 2)
    again = Golden.from_json(replace(golden, others=(other, golden), tf32_error=0.0625).to_json())
    assert again.tf32_error == 0.0625 and np.array_equal(again.image, golden.image)
    assert [one.others for one in again.others] == [(), ()]
    assert np.array_equal(again.others[0].image, other.image)
    assert np.array_equal(again.others[0].probability, other.probability)


PERMISSION = {
    "gate": {
        "images": "data", "count": 45, "flipped": 8e-5, "image_dice": 0.97, "image_dice_fp32": 0.97, "kept": [],
        "passed": True, "layers": None,
    },
    "max_flipped": 1e-4, "golden_error": 0.01, "max_abs_error": 0.02, "provider": "OpenVINO 2026.4 in bf16",
}  # fmt: skip


def test_the_permission_of_bf16_travels_with_the_sample(golden):
    found = Golden.from_json(changed(golden, bf16=PERMISSION))
    assert (found.bf16.gate.count, found.bf16.golden_error) == (45, 0.01)
    assert Golden.from_json(found.to_json()).bf16 == found.bf16 and json.loads(found.to_json())["bf16"] == PERMISSION
    assert golden.bf16 is None and "bf16" not in json.loads(golden.to_json())


@pytest.mark.parametrize(
    ("permission", "message"),
    [
        (None, "card field bf16: found None, expected a record"),
        ({}, "card field bf16.gate: is missing; export the model again"),
        (PERMISSION | {"more": 1}, "card field bf16.'more': is unknown; export the model again"),
        (PERMISSION | {"golden_error": "0"}, "card field bf16.golden_error: found '0', expected a number from 0 to 1"),
    ],
)
def test_a_damaged_permission_is_a_model_error(golden, permission, message):
    with pytest.raises(ModelError) as caught:
        Golden.from_json(changed(golden, bf16=permission))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("bf16", "limit"), [(False, 1e-4), (True, pytest.approx(1e-4 + 2 * 0.01))], ids=["in float32", "in bf16"]
)
def test_a_device_in_bf16_may_be_off_by_twice_what_the_export_saw(golden, bf16, limit):
    spec = ModuleConfig(name="net", in_channels=3, classes=1)
    card = ModelCard(
        name="m", producer={}, architecture=spec, input=InputSpec(), output=OutputSpec(), weights_sha256="0" * 64,
        bf16=Golden.from_json(changed(golden, bf16=PERMISSION)).bf16,
    )  # fmt: skip
    assert allowed_error(1e-4, card, bf16=bf16) == limit


def test_samples_of_older_files_have_one_image(golden):
    assert json.loads(golden.to_json()).keys() == {"image", "probability"}
    again = Golden.from_json(golden.to_json())
    assert (again.others, again.tf32_error) == ((), None)


def test_the_largest_error_is_that_of_all_samples(golden):
    other = Golden(image=255 - golden.image, probability=golden.probability)
    both = replace(golden, others=(other,))

    def answer(batch):
        return golden.probability[None] + np.float32(0.25) * (not np.array_equal(batch[0], golden.image))

    assert (both.error(answer), both.largest_error(answer)) == (0, pytest.approx(0.25))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tf32_error": 1.5}, "its error in TF32 is not a number from 0 to 1"),
        ({"tf32_error": float("nan")}, "its error in TF32 is not a number from 0 to 1"),
        ({"tf32_error": True}, "its error in TF32 is not a number from 0 to 1"),
        ({"others": [{"image": packed(bytes(3), [1, 1, 3]), "probability": packed(bytes(8), [2, 1, 1])}]}, "differ in"),
        ({"others": [[]]}, "list indices"),
        ({"others": 1}, "int"),
        ({"others": [{"image": {"shape": [5, 7, 3]}, "probability": {"shape": [2, 5, 7]}}] * 400_000}, "are too large"),
    ],
    ids=["too large", "NaN", "a truth", "another size", "no sample", "no list", "too many"],
)
def test_damage_beside_the_first_image_is_a_model_error(golden, changes, reason):
    with pytest.raises(ModelError, match=r"golden sample: is damaged \(") as caught:
        Golden.from_json(changed(golden, **changes))
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("tf32_error", "limit"), [(None, 2e-2), (0, 5e-3), (1e-3, 5e-3), (2e-3, 8e-3), (9e-3, 2e-2), (3e-2, 3e-2)]
)
def test_a_gpu_may_be_off_by_four_times_the_error_in_tf32_within_bounds(tf32_error, limit):
    assert tf32_tolerance(tf32_error, 2e-2) == pytest.approx(limit)


def test_golden_of_a_transposed_array_is_stored_in_order(golden):
    turned = Golden(
        image=golden.image.transpose(1, 0, 2), probability=np.asfortranarray(golden.probability.transpose(0, 2, 1))
    )
    again = Golden.from_json(turned.to_json())
    assert np.array_equal(again.image, golden.image.transpose(1, 0, 2))
    assert np.array_equal(again.probability, golden.probability.transpose(0, 2, 1))


def test_stored_floats_are_little_endian(golden):
    stored = json.loads(golden.to_json())["probability"]
    raw = zlib.decompress(base64.b64decode(stored["zlib"]))
    assert stored["shape"] == [2, 5, 7]
    assert raw == golden.probability.astype("<f4").tobytes()


DAMAGED = {
    "not json": ("{", "Expecting property name"),
    "no record": ("[]", "list indices"),
    "deeply nested": ("[" * 100_000, "recursion"),
    "no image": ({"image": None}, "NoneType"),
    "image without shape": ({"image": {"zlib": ""}}, "'shape'"),
    "image without content": ({"image": {"shape": [5, 7, 3]}}, "'zlib'"),
    "not base64": ({"image": {"shape": [5, 7, 3], "zlib": "?!"}}, "base64"),
    "content is a number": ({"image": {"shape": [5, 7, 3], "zlib": 5}}, "int"),
    "not zlib": ({"image": {"shape": [5, 7, 3], "zlib": base64.b64encode(b"plain").decode()}}, "incorrect header"),
    "too short": ({"image": packed(b"x" * 104, [5, 7, 3])}, "104 bytes, expected 105"),
    "too long": ({"image": packed(b"x" * 200, [5, 7, 3])}, "106 bytes, expected 105"),
    "two axes": ({"image": packed(b"x" * 35, [5, 7])}, "shape is out of bounds"),
    "four axes": ({"image": packed(b"x" * 105, [5, 7, 3, 1])}, "shape is out of bounds"),
    "zero side": ({"image": packed(b"", [0, 7, 3])}, "shape is out of bounds"),
    "negative sides": ({"image": packed(b"x" * 105, [-5, -7, 3])}, "shape is out of bounds"),
    "shape of text": ({"image": packed(b"x" * 105, "573")}, "shape is out of bounds"),
    "shape of floats": ({"image": packed(b"x" * 105, [5.0, 7.0, 3.0])}, "shape is out of bounds"),
    "huge side": ({"image": packed(b"", [4097, 1, 1])}, "shape is out of bounds"),
    "huge whole": ({"image": packed(b"", [4096, 4096, 5])}, "shape is out of bounds"),
    "another size": ({"image": packed(b"x" * 105, [7, 5, 3])}, "image and probabilities differ in size"),
    "NaN": ({"probability": packed(np.full(35, np.nan, "<f4").tobytes(), [1, 5, 7])}, "are not finite"),
    "infinite": ({"probability": packed(np.full(35, np.inf, "<f4").tobytes(), [1, 5, 7])}, "are not finite"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_golden_is_a_model_error(golden, case):
    change, message = DAMAGED[case]
    with pytest.raises(ModelError) as caught:
        Golden.from_json(change if isinstance(change, str) else changed(golden, **change))
    assert str(caught.value).startswith("golden sample: is damaged (")
    assert message in str(caught.value)


@pytest.mark.parametrize("at", [0, 1, 10, -6, -5, -1])
def test_flipped_byte_of_the_compressed_data_is_found(golden, at):
    stored = json.loads(golden.to_json())["image"]
    raw = bytearray(base64.b64decode(stored["zlib"]))
    raw[at] ^= 0xFF
    stored["zlib"] = base64.b64encode(bytes(raw)).decode()
    with pytest.raises(ModelError, match="golden sample: is damaged"):
        Golden.from_json(changed(golden, image=stored))


def test_zip_bomb_is_not_inflated(golden):
    bomb = changed(golden, image=packed(bytes(64 * 2**20), [5, 7, 3]))
    tracemalloc.start()
    try:
        with pytest.raises(ModelError, match="106 bytes, expected 105"):
            Golden.from_json(bomb)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**20 < MAX_BYTES


def test_error_is_the_largest_difference(golden):
    def answer(batch):
        assert batch.shape == (1, 5, 7, 3)
        assert np.array_equal(batch[0], golden.image)
        wrong = golden.probability.copy()
        wrong[1, 4, 6] += np.float32(0.25)
        wrong[0, 0, 0] -= np.float32(0.5)
        return wrong[None]

    assert golden.error(answer) == pytest.approx(0.5, abs=1e-6)
    assert golden.error(lambda batch: golden.probability[None]) == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=["NaN", "inf", "minus inf"])
def test_answer_that_is_not_finite_is_infinitely_wrong(golden, value):
    wrong = golden.probability.copy()
    wrong[0, 2, 3] = value
    assert golden.error(lambda batch: wrong[None]) == float("inf")


@pytest.mark.parametrize("shape", [(2, 5, 7), (1, 2, 7, 5), (1, 1, 5, 7), (2, 2, 5, 7), (1, 2, 5, 1)])
def test_answer_of_another_shape_is_infinitely_wrong(golden, shape):
    assert golden.error(lambda batch: np.zeros(shape, np.float32)) == float("inf")


@pytest.mark.parametrize("channels", [3, 1])
def test_golden_image_is_small_varied_and_no_multiple_of_sixteen(channels):
    image = golden_image(channels)
    assert image.shape == (*GOLDEN_SIZE, channels)
    assert image.dtype == np.uint8
    assert all(side % 16 for side in GOLDEN_SIZE)
    assert image.max() - image.min() > 150
    assert np.array_equal(image, golden_image(channels))


@pytest.mark.parametrize(
    ("spec", "size"),
    [
        ({"stride": 16}, GOLDEN_SIZE),
        ({"stride": 1}, GOLDEN_SIZE),
        ({"stride": 16, "min_size": (60, 33)}, (60, 88)),
        ({"stride": 16, "padded": False}, (64, 96)),
        ({"stride": 12, "padded": False, "size": (144, 144)}, (60, 96)),
        ({"stride": 48, "padded": False, "size": (144, 144), "min_size": (48, 144)}, (96, 144)),
    ],
)
def test_golden_sample_has_a_size_that_the_network_takes(spec, size):
    assert golden_size(InputSpec(**{"size": (160, 240)} | spec)) == size
    assert golden_image(3, size).shape == (*size, 3)


@pytest.mark.parametrize("channels", [2, 4, 7, 16])
def test_synthetic_images_have_any_number_of_channels_that_differ(channels):
    image = synthetic_image(20, 30, channels, seed=1)
    assert image.shape == (20, 30, channels) and image.dtype == np.uint8 and image.flags["C_CONTIGUOUS"]
    assert np.array_equal(image[:, :, :3], synthetic_image(20, 30, 3, seed=1)[:, :, :channels])
    planes = image.reshape(-1, channels).T
    assert len(np.unique(planes, axis=0)) == channels


def test_synthetic_images_differ_by_seed_and_exist_at_one_pixel():
    assert not np.array_equal(synthetic_image(8, 9, 3, seed=1), synthetic_image(8, 9, 3, seed=2))
    assert synthetic_image(1, 1, 1, seed=0).shape == (1, 1, 1)


def test_a_network_that_rounds_coarsely_may_be_off_by_what_its_proof_allows():
    parity = Parity(max_abs_error=0, flipped=0, iou=1, flip_distance=0)
    row = ProofRow(shape=(1, 8, 12), images="synthetic", parity=parity)
    proof = Proof(provider="CPUExecutionProvider", versions={}, tolerance=3e-4, rows=(row,), golden_error=0.0)
    card = ModelCard(
        name="deep",
        producer={},
        architecture=ModuleConfig(name="net.Deep"),
        input=InputSpec(),
        output=OutputSpec(),
        weights_sha256="0" * 64,
    )
    assert allowed_error(1e-4, card) == 1e-4
    assert allowed_error(1e-4, replace(card, proof=proof)) == 3e-4
    assert allowed_error(1e-2, replace(card, proof=proof)) == 1e-2
