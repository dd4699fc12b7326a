"""The table of other packages' networks; tests/export/test_real_networks.py exports them."""

from dataclasses import replace

from benchmarks.cases.networks import KINDS, NETWORKS, MeasuredNetwork, NetworkExport
from benchmarks.networks import markdown
from runtime.card import Gate, Parity, Proof, ProofRow

PARITY = Parity(max_abs_error=2e-6, flipped=0.0, iou=1.0, flip_distance=0.0)
GATE = Gate(
    images="data", count=9, flipped=0.001, image_dice=0.9, image_dice_fp32=0.91, kept=("first", "last"), passed=True
)


def exported(card, precision="fp32"):
    exact = precision == "fp32"
    proof = Proof(
        provider="CPU",
        versions={},
        tolerance=1e-4 if exact else None,
        rows=(ProofRow(shape=(1, 4, 4), images="data", parity=PARITY),),
        golden_error=0.0,
        gate=None if exact else GATE,
    )
    return NetworkExport(seconds=1.0, said="done", card=replace(card, precision=precision, proof=proof), size=1_500_000)


def refused(reason):
    return NetworkExport(seconds=1.0, said=f"note: something\nerror: {reason}\n", card=None, size=0)


def test_a_network_is_a_row_with_what_was_lost_and_what_was_refused(card):
    files = (exported(card), exported(card, "fp16"), refused("too much"), exported(card))
    found = {
        "Net": MeasuredNetwork(network=NETWORKS["UNet"], version="3", exports=dict(zip(KINDS, files, strict=True)))
    }
    text = markdown(found, {"torch": "2", "onnxruntime": "1"})
    assert (
        "| `Net` | monai 3 | any, padded to multiples of 4 | 1x1 | 1.5 | 2.0e-06 of 1.0e-04 | 0.1000%, Dice 0.9000 of "
        "0.9100, 2 layers in fp32 | too much | 2.0e-06 |"
    ) in text.splitlines()
    assert text.endswith("\n\ntorch 2, onnxruntime 1")


def test_the_reason_for_no_file_stands_in_place_of_its_figures():
    exports = dict.fromkeys(KINDS, refused("cannot be traced"))
    network = MeasuredNetwork(network=NETWORKS["UNet"], version="3", exports=exports)
    assert "| `Net` | monai 3 |  |  |  | cannot be traced |  |  |  |" in markdown({"Net": network}, {})
