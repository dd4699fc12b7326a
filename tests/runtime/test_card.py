"""ModelCard: what is written is what is read, and nothing absurd gets in."""

import json
import math
from dataclasses import replace

import pytest

from runtime.card import (
    Bf16Permission,
    Gate,
    InputSpec,
    ModelCard,
    ModuleConfig,
    OutputSpec,
    Parity,
    Proof,
    ProofRow,
    SmpConfig,
    Training,
    UNetConfig,
)
from runtime.errors import ModelError


def full_card():
    """A card with every field away from its default."""
    parity = Parity(max_abs_error=1e-7, flipped=0.25, iou=0.5, flip_distance=0.125)
    return ModelCard(
        name="grey cars",
        producer={"torch": "2.15", "unet-deploy": "0.1"},
        architecture=UNetConfig(in_channels=1, classes=3, widths=(8, 16, 32), up="bilinear"),
        input=InputSpec(size=(64, 96), channels="L", mean=(0.4,), std=(0.2,), fit="letterbox", stride=8),
        output=OutputSpec(classes=("road", "car", "tree"), activation="softmax", threshold=0.25),
        weights_sha256="0123456789abcdef" * 4,
        precision="fp16",
        training=Training(epochs=3, data="sha256:ab", metrics={"dice": 0.75, "loss": -1}),
        proof=Proof(
            provider="CPUExecutionProvider",
            versions={"onnxruntime": "1.31.1"},
            tolerance=None,
            rows=(
                ProofRow(shape=(1, 64, 96), images="data", parity=parity),
                ProofRow(
                    shape=(2, 1, 1),
                    images="synthetic",
                    parity=Parity(max_abs_error=3e-7, flipped=0, iou=1, flip_distance=0),
                ),
            ),
            golden_error=0.125,
            gate=Gate(
                images="data",
                count=45,
                flipped=0.0625,
                image_dice=0.5,
                image_dice_fp32=0.75,
                kept=("downs.0.conv.0", "final_conv"),
                passed=False,
                layers=1_000,
            ),
        ),
    )


def exact(card):
    """The card as one of fp32."""
    return replace(card, precision="fp32", proof=replace(card.proof, tolerance=1e-4, gate=None))


def edited(path, value):
    """The JSON of `full_card` with one field replaced; `path` is dotted, list indices are numbers."""
    data = json.loads(full_card().to_json())
    *parents, last = (int(part) if part.isdigit() else part for part in path.split("."))
    record = data
    for part in parents:
        record = record[part]
    record[last] = value
    return json.dumps(data)


def test_card_round_trips():
    card = full_card()
    again = ModelCard.from_json(card.to_json())
    assert again == card
    assert again.architecture.widths == (8, 16, 32)
    assert again.training.metrics == {"dice": 0.75, "loss": -1}
    assert again.proof.rows[1].shape == (2, 1, 1)
    assert again.proof.max_abs_error == 3e-7
    assert (again.proof.rows[0].images, again.proof.tolerance, again.proof.golden_error) == ("data", None, 0.125)
    assert again.proof.gate.kept == ("downs.0.conv.0", "final_conv")
    assert again.proof.gate.passed is False


def test_card_of_fp32_round_trips():
    card = exact(full_card())
    assert ModelCard.from_json(card.to_json()) == card
    assert (card.proof.tolerance, card.proof.gate) == (1e-4, None)


@pytest.mark.parametrize("field", ["training", "proof"])
def test_training_and_proof_may_be_absent(field):
    card = ModelCard.from_json(edited(field, None))
    assert getattr(card, field) is None
    assert ModelCard.from_json(card.to_json()) == card


def test_equal_cards_give_equal_json_whatever_the_order_of_their_entries():
    text = edited("producer", {"unet-deploy": "0.1", "torch": "2.15"})
    backwards = json.dumps(dict(reversed(json.loads(text).items())))
    assert ModelCard.from_json(backwards).to_json() == full_card().to_json()


def test_defaults_are_carvana_with_one_class():
    card = ModelCard(
        name="m",
        producer={},
        architecture=UNetConfig(),
        input=InputSpec(),
        output=OutputSpec(),
        weights_sha256="0" * 64,
    )
    assert (card.schema, card.input.size, card.output.classes, card.output.threshold) == (2, (160, 240), ("car",), 0.5)
    assert card.architecture.widths == (64, 128, 256, 512)
    assert card.precision == "fp32"
    assert card.training is None


@pytest.mark.parametrize(("widths", "stride"), [((8,), 2), ((8, 16, 32, 64), 16), ((1,) * 8, 256)])
def test_stride_is_two_to_the_number_of_poolings(widths, stride):
    assert UNetConfig(widths=widths).stride == stride


OUT_OF_BOUNDS = [
    ("schema", 0, "schema: found 0, expected an integer from 2 to 2"),
    ("schema", 3.0, "schema: found 3.0"),
    ("schema", True, "schema: found True"),
    ("schema", "1", "schema: found '1'"),
    ("name", "", "name: found '', expected text of 1 to 200 characters"),
    ("name", "x" * 201, "name: found 'xxx"),
    ("name", 5, "name: found 5"),
    ("producer", ["torch"], "producer: found ('torch',), expected a record of at most 100 entries"),
    ("producer", {str(index): "" for index in range(101)}, "producer: found {"),
    ("producer", {"torch": 2}, "producer.torch: found 2, expected text of 0 to 1000 characters"),
    ("producer", {"": "2"}, "producer: found '', expected text of 1 to 200"),
    ("architecture", [], "architecture: found [], expected a record"),
    ("architecture", None, "architecture: found None, expected a record"),
    ("architecture.kind", "vit", "architecture.kind: found 'vit', expected one of unet, module"),
    ("architecture.kind", ["unet"], "architecture.kind: found ['unet'], expected one of unet, module"),
    ("architecture.in_channels", 17, "architecture.in_channels: found 17, expected an integer from 1 to 16"),
    ("architecture.in_channels", True, "architecture.in_channels: found True"),
    ("architecture.in_channels", 1.0, "architecture.in_channels: found 1.0"),
    ("architecture.classes", 0, "architecture.classes: found 0, expected an integer from 1 to 1024"),
    ("architecture.classes", 1025, "architecture.classes: found 1025"),
    ("architecture.classes", True, "architecture.classes: found True"),
    ("architecture.classes", 3.0, "architecture.classes: found 3.0"),
    ("architecture.classes", 2, "output.classes: found ('road', 'car', 'tree'), expected 2 names"),
    ("architecture.widths", [], "architecture.widths: found (), expected 1 to 8 values"),
    ("architecture.widths", [8] * 9, "architecture.widths: found (8, 8,"),
    ("architecture.widths", [8, 0, 32], "architecture.widths: found 0, expected an integer from 1 to 65536"),
    ("architecture.widths", [8, 16, 65_537], "architecture.widths: found 65537"),
    ("architecture.widths", {"0": 8}, "architecture.widths: found {'0': 8}"),
    ("architecture.widths", [8, 16], "input.stride: found 8, expected 4, 2 ** depth"),
    (
        "architecture.up",
        "nearest",
        "architecture.up: found 'nearest', expected one of transpose, bilinear, bilinear-wide",
    ),
    ("input", [], "input: found [], expected a record"),
    ("input.size", [64], "input.size: found (64,), expected 2 values"),
    ("input.size", [64, 96, 3], "input.size: found (64, 96, 3), expected 2 values"),
    ("input.size", [0, 96], "input.size: found 0, expected an integer from 1 to 32768"),
    ("input.size", [64, 10**9], "input.size: found 1000000000"),
    ("input.size", [64.0, 96], "input.size: found 64.0"),
    ("input.size", 64, "input.size: found 64, expected 2 values"),
    ("input.channels", "BGR", "input.channels: found 'BGR', expected one of RGB, L, raw"),
    ("input.mean", [0.4, 0.4], "input.mean: found (0.4, 0.4), expected 1 values"),
    ("input.mean", [math.nan], "input.mean: found nan, expected a number from -1000 to 1000"),
    ("input.mean", [math.inf], "input.mean: found inf"),
    ("input.mean", ["0.4"], "input.mean: found '0.4'"),
    ("input.mean", [True], "input.mean: found True"),
    ("input.std", [0], "input.std: found 0, expected a number from 1e-06 to 1000"),
    ("input.std", [-0.2], "input.std: found -0.2"),
    ("input.std", [math.nan], "input.std: found nan"),
    ("input.std", [10**400], "input.std: found 100000000000000000...0000000000000000000"),
    ("input.std", [], "input.std: found (), expected 1 values"),
    ("input.fit", "crop", "input.fit: found 'crop', expected one of stretch, letterbox, native"),
    ("input.fit", [], "input.fit: found ()"),
    ("input.stride", 16, "input.stride: found 16, expected 8, 2 ** depth"),
    ("input.stride", 0, "input.stride: found 0, expected an integer from 1 to 1024"),
    ("input.stride", 8.0, "input.stride: found 8.0, expected an integer from 1 to 1024"),
    ("input.padded", None, "input.padded: found None, expected one of True, False"),
    ("input.fixed_batch", 0, "input.fixed_batch: found 0, expected an integer from 1 to 1024"),
    ("input.fixed_batch", 1.0, "input.fixed_batch: found 1.0, expected an integer from 1 to 1024"),
    ("input.min_size", [1], "input.min_size: found (1,), expected 2 values"),
    ("input.min_size", [0, 1], "input.min_size: found 0, expected an integer from 1 to 64"),
    ("input.min_size", [64, 97], "input.min_size: found 97, expected an integer from 1 to 96"),
    ("output", [], "output: found [], expected a record"),
    ("output.classes", [], "output.classes: found (), expected 1 to 1024 values"),
    ("output.classes", ["car", "road", "car"], "output.classes: found ('car', 'road', 'car'), expected different"),
    ("output.classes", ["car", "road", ""], "output.classes: found '', expected text of 1 to 200"),
    ("output.classes", ["car", "road", ["tree"]], "output.classes: found ['tree']"),
    ("output.classes", "abc", "output.classes: found 'abc'"),
    ("output.activation", "relu", "output.activation: found 'relu', expected one of sigmoid, softmax, sigmoids"),
    ("output.activation", "sigmoid", "output.activation: found 'sigmoid', expected sigmoid for one class"),
    ("output.threshold", 0, "output.threshold: found 0, expected a number from 1e-06"),
    ("output.threshold", 1, "output.threshold: found 1, expected a number"),
    ("output.threshold", math.nan, "output.threshold: found nan"),
    ("output.threshold", None, "output.threshold: found None"),
    ("weights_sha256", "0" * 63, "weights_sha256: found '000"),
    ("weights_sha256", "G" * 64, "weights_sha256: found 'GGG"),
    ("weights_sha256", "A" * 64, "weights_sha256: found 'AAA"),
    ("weights_sha256", None, "weights_sha256: found None"),
    ("precision", "bf16", "precision: found 'bf16', expected one of fp32, fp16, int8"),
    ("training", [], "training: found [], expected a record"),
    ("training.epochs", -1, "training.epochs: found -1, expected an integer from 0"),
    ("training.epochs", True, "training.epochs: found True"),
    ("training.data", None, "training.data: found None"),
    ("training.metrics", [0.5], "training.metrics: found (0.5,), expected a record"),
    ("training.metrics", {"dice": math.nan}, "training.metrics.dice: found nan"),
    ("training.metrics", {"dice": "0.9"}, "training.metrics.dice: found '0.9'"),
    ("proof", [], "proof: found [], expected a record"),
    ("proof.provider", "", "proof.provider: found ''"),
    ("proof.versions", {"onnxruntime": None}, "proof.versions.onnxruntime: found None"),
    ("proof.tolerance", 2, "proof.tolerance: found 2, expected a number from 0 to 1"),
    ("proof.tolerance", -1e-9, "proof.tolerance: found -1e-09, expected a number from 0 to 1"),
    ("proof.tolerance", "0", "proof.tolerance: found '0', expected a number from 0 to 1"),
    ("proof.tolerance", 1e-4, "proof.tolerance: found 0.0001, expected none with fp16"),
    ("proof.reference", "author", "proof.reference: found 'author', expected one of module, reading, pairs"),
    ("proof.golden_error", -0.1, "proof.golden_error: found -0.1, expected a number from 0 to 1"),
    ("proof.golden_error", 1.1, "proof.golden_error: found 1.1, expected a number from 0 to 1"),
    ("proof.golden_error", math.nan, "proof.golden_error: found nan"),
    ("proof.golden_error", None, "proof.golden_error: found None"),
    ("proof.golden_error", True, "proof.golden_error: found True"),
    ("proof.gate", None, "proof.gate: found None, expected one with fp16"),
    ("proof.gate", [], "proof.gate: found [], expected a record"),
    ("proof.gate", False, "proof.gate: found False, expected a record"),
    ("proof.gate.images", "golden", "proof.gate.images: found 'golden', expected one of synthetic, data"),
    ("proof.gate.images", ["data"], "proof.gate.images: found ('data',), expected one of synthetic, data"),
    ("proof.gate.count", 0, "proof.gate.count: found 0, expected an integer from 1 to 1000000000"),
    ("proof.gate.count", 10**9 + 1, "proof.gate.count: found 1000000001"),
    ("proof.gate.count", 45.0, "proof.gate.count: found 45.0"),
    ("proof.gate.flipped", -0.1, "proof.gate.flipped: found -0.1, expected a number from 0 to 1"),
    ("proof.gate.flipped", 1.1, "proof.gate.flipped: found 1.1"),
    ("proof.gate.flipped", None, "proof.gate.flipped: found None"),
    ("proof.gate.flipped", math.nan, "proof.gate.flipped: found nan"),
    ("proof.gate.image_dice", 1.5, "proof.gate.image_dice: found 1.5, expected a number from 0 to 1"),
    ("proof.gate.image_dice", -0.5, "proof.gate.image_dice: found -0.5"),
    ("proof.gate.image_dice", None, "proof.gate.image_dice_fp32: found 0.75, expected a number with image_dice"),
    ("proof.gate.image_dice_fp32", None, "proof.gate.image_dice_fp32: found None, expected a number with image_dice"),
    ("proof.gate.image_dice_fp32", math.inf, "proof.gate.image_dice_fp32: found inf"),
    ("proof.gate.kept", "final_conv", "proof.gate.kept: found 'final_conv', expected 0 to 1000 values"),
    ("proof.gate.kept", ["x"] * 1001, "proof.gate.kept: found ('x',"),
    ("proof.gate.kept", [""], "proof.gate.kept: found '', expected text of 1 to 200 characters"),
    ("proof.gate.kept", [["final_conv"]], "proof.gate.kept: found ['final_conv']"),
    ("proof.gate.passed", 1, "proof.gate.passed: found 1, expected one of True, False"),
    ("proof.gate.passed", None, "proof.gate.passed: found None"),
    ("proof.gate.passed", "true", "proof.gate.passed: found 'true'"),
    ("proof.gate.layers", 1, "proof.gate.layers: found 1, expected an integer from 2 to 1000000"),
    ("proof.gate.layers", 1000.0, "proof.gate.layers: found 1000.0"),
    ("proof.rows", [], "proof.rows: found (), expected 1 to 1000 values"),
    ("proof.rows", [1], "proof.rows: found 1, expected a record"),
    ("proof.rows", {}, "proof.rows.images: is missing"),
    ("proof.rows.0.images", "real", "proof.rows.images: found 'real', expected one of synthetic, data, pairs"),
    ("proof.rows.0.images", None, "proof.rows.images: found None"),
    ("proof.rows.0.shape", [1, 64], "proof.rows.shape: found (1, 64), expected 3 values"),
    ("proof.rows.0.shape", [1, 0, 1], "proof.rows.shape: found 0"),
    ("proof.rows.0.parity", [], "proof.rows.parity: found [], expected a record"),
    ("proof.rows.0.parity.max_abs_error", math.nan, "proof.max_abs_error: found nan"),
    ("proof.rows.0.parity.flipped", 1.5, "proof.flipped: found 1.5, expected a number from 0 to 1"),
    ("proof.rows.0.parity.iou", -0.1, "proof.iou: found -0.1"),
    ("proof.rows.0.parity.flip_distance", "0", "proof.flip_distance: found '0'"),
]


@pytest.mark.parametrize(("path", "value", "message"), OUT_OF_BOUNDS)
def test_field_out_of_bounds_is_refused_by_name(path, value, message):
    with pytest.raises(ModelError) as caught:
        ModelCard.from_json(edited(path, value))
    assert str(caught.value).startswith("card field " + message)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("proof.golden_error", 0),
        ("proof.golden_error", 1),
        ("proof.gate.count", 1),
        ("proof.gate.count", 10**9),
        ("proof.gate.flipped", 0),
        ("proof.gate.flipped", 1.0),
        ("proof.gate.image_dice", 0),
        ("proof.gate.image_dice_fp32", 1),
        ("proof.gate.kept", []),
        ("proof.gate.kept", ["x" * 200] * 1000),
        ("proof.gate.passed", True),
        ("proof.gate.images", "synthetic"),
        ("proof.rows.1.shape", [32_768, 32_768, 32_768]),
    ],
)
def test_values_at_their_bounds_are_taken(path, value):
    text = edited(path, value)
    assert json.loads(ModelCard.from_json(text).to_json()) == json.loads(text)


def test_a_gate_without_masks_has_no_dice():
    card = full_card()
    gate = replace(card.proof.gate, image_dice=None, image_dice_fp32=None)
    card = replace(card, proof=replace(card.proof, gate=gate))
    assert ModelCard.from_json(card.to_json()) == card


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gate": full_card().proof.gate}, "proof.gate: found Gate("),
        ({"tolerance": None}, "proof.tolerance: found None, expected a number with fp32"),
    ],
)
def test_fp32_is_proven_by_a_tolerance_and_the_others_by_a_gate(change, message):
    card = exact(full_card())
    with pytest.raises(ModelError) as caught:
        replace(card, proof=replace(card.proof, **change))
    assert str(caught.value).startswith(f"card field {message}")
    with pytest.raises(ModelError, match=r"^card field proof\.gate: found None, expected one with int8$"):
        replace(card, precision="int8")


def test_channels_must_agree_with_the_architecture():
    with pytest.raises(ModelError, match=r"^card field input\.channels: found 'L', expected 3 channels$"):
        ModelCard.from_json(edited("architecture.in_channels", 3))


def test_one_class_cannot_have_a_softmax():
    with pytest.raises(ModelError, match=r"output\.activation: found 'softmax', expected sigmoid for one class"):
        OutputSpec(classes=("car",), activation="softmax")


LEVELS = [
    "",
    "architecture.",
    "input.",
    "output.",
    "training.",
    "proof.",
    "proof.rows.0.",
    "proof.rows.0.parity.",
    "proof.gate.",
]


@pytest.mark.parametrize("level", LEVELS)
def test_missing_field_is_refused_at_every_level(level):
    data = json.loads(full_card().to_json())
    record = data
    for part in level.split(".")[:-1]:
        record = record[int(part) if part.isdigit() else part]
    for name in record.keys() - ({"target"} if level == "" else set()):  # older files have no target
        value = record.pop(name)
        where = f"{level}{name}".replace(".0", "")
        with pytest.raises(ModelError) as caught:
            ModelCard.from_json(json.dumps(data))
        assert str(caught.value) == f"card field {where}: is missing; export the model again"
        record[name] = value
    assert ModelCard.from_json(json.dumps(data)) == full_card()


@pytest.mark.parametrize("level", LEVELS)
def test_unknown_field_is_refused_at_every_level(level):
    with pytest.raises(ModelError) as caught:
        ModelCard.from_json(edited(f"{level}colour", 1))
    assert str(caught.value) == f"card field {level.replace('.0', '')}'colour': is unknown; export the model again"


@pytest.mark.parametrize(("schema", "shown"), [(3, "3"), (10**100, "100000000000000000...0000000000000000000")])
def test_newer_schema_says_to_upgrade_even_if_its_fields_are_unknown(schema, shown):
    data = json.loads(edited("schema", schema)) | {"invented_later": 1}
    del data["precision"]
    with pytest.raises(ModelError) as caught:
        ModelCard.from_json(json.dumps(data))
    assert str(caught.value) == f"card field schema: found {shown}, this version reads up to 2; upgrade unet-deploy"


@pytest.mark.parametrize(
    "text",
    ["", "{", "not json", "[" * 200_000, '{"schema": ' + "9" * 5000 + "}", '{"a": "\x00"}'],
    ids=["empty", "cut off", "words", "deeply nested", "endless integer", "control character"],
)
def test_what_is_not_json_is_a_model_error(text):
    with pytest.raises(ModelError, match=r"^card: is not JSON \(.*\); export the model again$"):
        ModelCard.from_json(text)


@pytest.mark.parametrize("text", ["[]", "null", "1", '"card"'])
def test_json_that_is_no_record_is_refused(text):
    with pytest.raises(ModelError, match=r"^card field card: found .*, expected a record$"):
        ModelCard.from_json(text)


def test_value_nested_deeply_is_refused_with_a_short_message():
    deep = json.loads("[" * 300 + "]" * 300)
    with pytest.raises(ModelError) as caught:
        ModelCard.from_json(edited("name", deep))
    assert len(str(caught.value)) < 200
    assert "card field name: found (" in str(caught.value)


@pytest.mark.parametrize("field", ["name", "schema"])
def test_card_cannot_be_changed(field):
    card = full_card()
    with pytest.raises(AttributeError, match=f"cannot assign to field '{field}'"):
        setattr(card, field, 1)


def module_card(**changes):
    """The card of a network of another architecture."""
    fields = {"name": "segmentation_models_pytorch.Unet", "in_channels": 3, "classes": 1} | changes
    channels = fields["in_channels"]
    several = {"channels": "raw", "mean": (0.0,) * channels, "std": (1.0,) * channels} if channels == 5 else {}
    activation = "softmax" if fields["classes"] == 2 else "sigmoid"
    return ModelCard(
        name="smp",
        producer={},
        architecture=ModuleConfig(**fields),
        input=InputSpec(size=(96, 96), stride=32, min_size=(32, 32), **several),
        output=OutputSpec(classes=("car", "road")[: fields["classes"]], activation=activation),
        weights_sha256="0" * 64,
    )


def test_networks_of_many_channels_take_arrays_and_have_as_many_means():
    card = module_card(in_channels=5)
    with pytest.raises(ModelError, match=r"input\.mean: found .*, expected 1 to 16 values"):
        InputSpec(channels="raw", mean=(0.0,) * 17, std=(1.0,) * 17)
    with pytest.raises(ModelError, match=r"input\.std: found .*, expected 5 values"):
        InputSpec(channels="raw", mean=(0.0,) * 5, std=(1.0,) * 4)
    with pytest.raises(ModelError, match=r"input\.channels: found 'raw', expected 5 channels"):
        replace(card, input=replace(card.input, mean=(0.0,) * 4, std=(1.0,) * 4))
    assert ModelCard.from_json(card.to_json()) == card


def test_a_fraction_of_an_images_own_size_goes_with_native():
    InputSpec(fit="native", scale=0.5)
    for changes in ({"scale": 0.5}, {"scale": 0.5, "fit": "letterbox"}, {"scale": 1.5, "fit": "native"}):
        with pytest.raises(ModelError, match=r"input\.scale: found [01]\.5, expected "):
            InputSpec(**changes)


def test_a_network_that_is_never_padded_has_images_fitted_to_multiples_of_its_stride():
    card = module_card()
    exact = replace(card, input=replace(card.input, padded=False))
    assert ModelCard.from_json(exact.to_json()) == exact
    with pytest.raises(ModelError, match=r"input\.size: found \(96, 97\), expected multiples of 32, since the network"):
        replace(exact.input, size=(96, 97))
    with pytest.raises(
        ModelError, match=r"input\.fit: found 'native', expected stretch or letterbox, since the network"
    ):
        replace(exact, input=replace(exact.input, fit="native"))
    replace(exact, input=replace(exact.input, fit="native", stride=1))  # each size is a multiple of 1


def test_a_file_of_one_shape_has_images_fitted_to_its_size():
    spec = InputSpec(size=(64, 96), fixed_batch=3)
    assert (spec.fixed_shape, spec.fixed_size) == ((3, 64, 96), (64, 96))
    assert (InputSpec().fixed_shape, InputSpec().fixed_size) == (None, None)
    card = replace(module_card(), input=replace(module_card().input, fixed_batch=3))
    assert ModelCard.from_json(card.to_json()) == card
    with pytest.raises(ModelError) as caught:
        InputSpec(fixed_batch=3, fit="native")
    assert str(caught.value) == "card field input.fixed_batch: found 3, expected null with fit native, whose sizes vary"


def test_several_classes_may_be_independent():
    card = replace(
        module_card(classes=2), output=OutputSpec(classes=("face", "hair"), activation="sigmoids", threshold=0.3)
    )
    assert ModelCard.from_json(card.to_json()) == card
    with pytest.raises(ModelError, match=r"found 'sigmoids', expected sigmoid for one class"):
        OutputSpec(activation="sigmoids")


def test_the_card_of_another_architecture_round_trips():
    card = module_card()
    again = ModelCard.from_json(card.to_json())
    assert again == card and isinstance(again.architecture, ModuleConfig)
    assert (again.architecture.name, again.input.stride) == ("segmentation_models_pytorch.Unet", 32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": ""}, "architecture.name: found '', expected text of 1 to 200 characters"),
        ({"in_channels": 17}, "architecture.in_channels: found 17, expected an integer from 1 to 16"),
        ({"in_channels": 4}, "input.channels: found 'RGB', expected 4 channels"),
        ({"classes": 0}, "architecture.classes: found 0, expected an integer from 1 to 1024"),
        ({"kind": "unet"}, "architecture.kind: found 'unet', expected one of module"),
    ],
)
def test_absurd_fields_of_another_architecture_are_refused_by_name(changes, message):
    with pytest.raises(ModelError) as caught:
        module_card(**changes)
    assert str(caught.value) == f"card field {message}"


def of_schema_1(card):
    """The JSON of a U-Net's card as schema 1 has it."""
    data = json.loads(card.to_json()) | {"schema": 1}
    del data["architecture"]["kind"]
    for name in ("min_size", "padded", "scale", "fixed_batch"):
        del data["input"][name]
    if data["proof"]:
        del data["proof"]["reference"]
        if data["proof"]["gate"]:
            del data["proof"]["gate"]["layers"]
    return data


@pytest.mark.parametrize("known", [True, False])
def test_cards_of_schema_1_are_read_and_their_reference_follows_from_the_training(known):
    card = full_card() if known else replace(full_card(), training=None)
    gate = replace(card.proof.gate, layers=None)
    expected = replace(card, proof=replace(card.proof, reference="module" if known else "reading", gate=gate))
    assert ModelCard.from_json(json.dumps(of_schema_1(card))) == expected


def test_a_field_of_schema_2_in_a_card_of_schema_1_is_no_way_around_its_checks():
    data = of_schema_1(full_card())
    data["architecture"]["kind"] = "module"
    with pytest.raises(ModelError, match=r"card field architecture\.name: is missing"):
        ModelCard.from_json(json.dumps(data))


def with_levels(levels):
    return replace(full_card(), input=replace(full_card().input, levels=levels))


def test_levels_of_the_whole_range_are_not_written_so_that_older_versions_read_the_card():
    """They refuse fields that they do not know: with other levels rightly, since they would not obey them."""
    assert "levels" not in json.loads(full_card().to_json())["input"]
    card = with_levels((0, 4095))
    assert json.loads(card.to_json())["input"]["levels"] == [0, 4095]
    assert ModelCard.from_json(card.to_json()) == card
    assert ModelCard.from_json(full_card().to_json()).input.levels is None


@pytest.mark.parametrize(
    ("levels", "found"),
    [
        ((0,), "found (0,), expected 2 values"),
        ((-1, 255), "found -1, expected an integer from 0 to 65535"),
        ((0, 65_536), "found 65536, expected an integer from 0 to 65535"),
        ((0, 0.5), "found 0.5, expected an integer from 0 to 65535"),
        ((7, 7), "found (7, 7), expected the value of black first, and a larger one of white"),
    ],
)
def test_absurd_levels_are_refused(levels, found):
    with pytest.raises(ModelError) as caught:
        with_levels(levels)
    assert str(caught.value) == f"card field input.levels: {found}"


def permission(**changes):
    gate = replace(full_card().proof.gate, passed=True)
    known = {"max_flipped": 1e-4, "golden_error": 0.01, "max_abs_error": 0.02, "provider": "OpenVINO 2026.4 in bf16"}
    return Bf16Permission(**({"gate": gate} | known | changes))


def test_the_permission_of_bf16_is_no_field_of_the_cards_json():
    """Earlier versions refuse fields that they do not know, so it travels with the golden sample."""
    card = replace(full_card(), bf16=permission())
    assert card.allows_bf16 and card.to_json() == full_card().to_json()
    assert ModelCard.from_json(card.to_json()) == full_card()
    with pytest.raises(ModelError, match=r"^card field 'bf16': is unknown; export the model again$"):
        ModelCard.from_json(json.dumps(json.loads(card.to_json()) | {"bf16": None}))


def test_a_gate_that_failed_permits_nothing():
    failed = permission(gate=full_card().proof.gate)
    assert not replace(full_card(), bf16=failed).allows_bf16 and not full_card().allows_bf16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"golden_error": 1.5}, "card field bf16.golden_error: found 1.5, expected a number from 0 to 1"),
        ({"max_abs_error": math.nan}, "card field bf16.max_abs_error: found nan, expected a number from 0 to 1"),
        ({"max_flipped": -1}, "card field bf16.max_flipped: found -1, expected a number from 0 to 1"),
        ({"provider": ""}, "card field bf16.provider: found '', expected text of 1 to 200 characters"),
    ],
)
def test_absurd_permissions_are_refused(changes, message):
    with pytest.raises(ModelError) as caught:
        permission(**changes)
    assert str(caught.value) == message


def smp_card():
    """A card of a network of segmentation-models-pytorch."""
    network = SmpConfig(name="FPN", encoder="tu-resnet10t", classes=3, options={"decoder_pyramid_channels": 64})
    spec = replace(full_card().input, channels="RGB", mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3), stride=32)
    return replace(full_card(), architecture=network, input=spec)


def test_a_network_of_another_library_is_written_by_its_names_there_and_read_again():
    card = smp_card()
    assert ModelCard.from_json(card.to_json()) == card
    assert json.loads(card.to_json())["architecture"] == {
        "kind": "smp",
        "name": "FPN",
        "encoder": "tu-resnet10t",
        "in_channels": 3,
        "classes": 3,
        "options": {"decoder_pyramid_channels": 64},
    }
    assert card.architecture.summary == "smp.FPN with the encoder tu-resnet10t"
    channels = {"decoder_channels": [8, 4]}
    assert SmpConfig(name="Unet", options=channels) == SmpConfig(name="Unet", options={"decoder_channels": (8, 4)})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("name", "os", "architecture.name: found 'os', expected one of Unet, UnetPlusPlus, "),
        ("encoder", "../x", "architecture.encoder: found '../x', expected the name of an encoder"),
        ("encoder", "tu-hf-hub:x/y", "architecture.encoder: found 'tu-hf-hub:x/y', expected the name of an encoder"),
        ("encoder", "resnet34\n", "architecture.encoder: found 'resnet34\\n', expected the name of an encoder"),
        ("options", {"encoder_weights": "imagenet"}, "architecture.options: found 'encoder_weights', expected names"),
        ("options", {"a b": 1}, "architecture.options: found 'a b', expected names of options"),
        (
            "options",
            {"decoder_channels": 4_096},
            "architecture.options.decoder_channels: found 4096, expected a number",
        ),
        ("options", {"decoder_channels": [[8]]}, "architecture.options.decoder_channels: found [8], expected a number"),
        (
            "options",
            {"decoder_channels": {"x": 8}},
            "architecture.options.decoder_channels: found {'x': 8}, expected a",
        ),
        ("options", ["a"], "architecture.options: found ('a',), expected at most 16 names and values"),
        ("options", {f"a{index}": 1 for index in range(17)}, "architecture.options: found {'a0': 1, "),
    ],
)
def test_a_network_of_another_library_names_no_file_address_or_code(field, value, message):
    data = json.loads(smp_card().to_json())
    data["architecture"][field] = value
    with pytest.raises(ModelError) as caught:
        ModelCard.from_json(json.dumps(data))
    assert str(caught.value).startswith(f"card field {message}")
