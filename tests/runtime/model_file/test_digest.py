"""The digest: what was changed is told, what was only written again is not."""

import json
import subprocess
import sys
import threading

import onnx
import pytest
from onnx import helper, numpy_helper
from sealing import save_sealed

import runtime
from runtime.card import CARD_KEY, RAW_KEY
from runtime.errors import ModelError
from runtime.model_file import digest
from runtime.model_file.digest import DIGEST_KEY, NO_DIGEST, NOT_ASKED, VERIFIED, check_digest, graph_digest
from runtime.model_file.golden import GOLDEN_KEY
from runtime.model_file.protobuf_reader import WireError, field
from runtime.predictor import Predictor

ADVICE = "copy or export it again, or take it unverified: verify=False in Python, --no-verify of unet-predict"


@pytest.fixture
def sealed(write_model):
    return write_model("conv")


@pytest.fixture
def edited(sealed):
    """Load the file, let a function change the model, and write it back with the digest of before."""

    def edit(change):
        model = onnx.load(sealed)
        change(model)
        onnx.save(model, sealed)
        return sealed

    return edit


def entry(model, key):
    return next(entry for entry in model.metadata_props if entry.key == key)


def refusal(path):
    with pytest.raises(ModelError) as caught:
        Predictor(path, "cpu")
    return str(caught.value).removeprefix(f"{path}: ")


def test_a_sealed_file_is_verified_and_says_so(sealed):
    stored = json.loads(entry(onnx.load(sealed), DIGEST_KEY).value)
    assert (stored.pop("algorithm"), set(stored)) == ("blake3-4mib", {"graph", "card", "golden"})
    report = Predictor(sealed, "cpu").report
    assert report.integrity == VERIFIED == "verified"
    assert str(report).endswith(", digest verified")


def test_the_graphs_hash_is_over_all_but_the_metadata(sealed):
    model = onnx.load(sealed)
    assert graph_digest(sealed) == check_digest(sealed).graph
    del model.metadata_props[:]
    assert graph_digest(sealed) == pieces_hash(model.SerializeToString(), 2**22)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("size", [7, 1_000, 2**20])
def test_the_graphs_hash_is_of_its_pieces_hashes_wherever_the_metadata_stand(sealed, monkeypatch, size, threads):
    model = onnx.load(sealed)
    del model.metadata_props[:]
    content = model.SerializeToString()
    monkeypatch.setattr(digest, "PIECE", size)
    monkeypatch.setattr(digest, "THREADS", threads)
    expected = pieces_hash(content, size)
    for place in (0, len(field(1, model.ir_version)), len(content)):
        sealed.write_bytes(content[:place] + field(14, field(1, b"key")) * 2 + content[place:])
        assert graph_digest(sealed) == expected


@pytest.mark.parametrize("size", [7, 2**20])
def test_a_file_is_hashed_where_no_thread_can_be_started(sealed, monkeypatch, size):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(digest, "PIECE", size)
    monkeypatch.setattr(digest, "available_threads", lambda: 4)
    expected = graph_digest(sealed)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert graph_digest(sealed) == expected


def test_a_file_is_hashed_after_the_main_thread_has_ended(sealed, root):
    code = (
        "import sys, threading\n"
        "from runtime.model_file import digest\n"
        "digest.PIECE, digest.available_threads = 7, lambda: 4\n"
        "def work():\n"
        "    threading.main_thread().join()\n"
        "    print(digest.graph_digest(sys.argv[1]))\n"
        "threading.Thread(target=work).start()\n"
    )
    command = [sys.executable, "-c", code, str(sealed)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=60, check=False)
    model = onnx.load(sealed)
    del model.metadata_props[:]
    assert (done.stdout.strip(), done.stderr) == (pieces_hash(model.SerializeToString(), 7), "")


def pieces_hash(content, size):
    pieces = [content[start : start + size] for start in range(0, len(content), size)]
    return digest.blake3(b"".join(digest.blake3(piece).digest() for piece in pieces)).hexdigest()


@pytest.mark.parametrize(
    ("spans", "pieces"),
    [
        ([], []),
        ([(0, 0)], []),
        ([(2, 5)], [[(2, 5)]]),
        ([(2, 9)], [[(2, 6)], [(6, 9)]]),
        ([(0, 3), (5, 6), (8, 10)], [[(0, 3), (5, 6)], [(8, 10)]]),
        ([(0, 3), (5, 14)], [[(0, 3), (5, 6)], [(6, 10)], [(10, 14)]]),
    ],
)
def test_spans_are_cut_into_pieces_of_four_bytes(spans, pieces):
    assert list(digest.cut(spans, 4)) == pieces


def test_a_file_that_became_shorter_while_it_was_hashed(sealed):
    size = sealed.stat().st_size
    with pytest.raises(WireError, match=r"^the file ends early$"):
        digest.piece_hash(sealed, [(0, size + 1)])


def test_every_flipped_bit_of_a_weights_last_byte_is_told_and_the_golden_sample_sees_none(sealed):
    content = sealed.read_bytes()
    place = content.index(numpy_helper.to_array(onnx.load(sealed).graph.initializer[0]).tobytes())
    for bit in range(8):
        sealed.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
        assert refusal(sealed) == (
            f"was damaged or changed since it was exported: its digest does not fit its graph or weights; {ADVICE}"
        )
        assert Predictor(sealed, "cpu", verify=False).report.integrity == NOT_ASKED


def threshold_of_a_tenth(model):
    one = entry(model, CARD_KEY)
    one.value = one.value.replace('"threshold": 0.5', '"threshold": 0.1')


def other_compression(model):
    one = entry(model, GOLDEN_KEY)
    one.value = json.dumps(json.loads(one.value), indent=1)


def renamed_and_card(model):
    model.graph.name = "other"
    threshold_of_a_tenth(model)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (threshold_of_a_tenth, "card"),
        (other_compression, "golden sample"),
        (renamed_and_card, "graph or weights and card"),
        (lambda model: model.opset_import.add(domain="ai.onnx.ml", version=3), "graph or weights"),
    ],
)
def test_what_was_changed_is_named(edited, change, parts):
    assert refusal(edited(change)) == (
        f"was damaged or changed since it was exported: its digest does not fit its {parts}; {ADVICE}"
    )


def test_a_graph_that_was_simplified_is_told(edited):
    """As onnxsim and onnxslim do: an equal graph, other nodes."""

    def fold(model):
        (relu,) = (node for node in model.graph.node if node.op_type == "Relu")
        relu.output[0] = "renamed"
        (after,) = (node for node in model.graph.node if "b" in node.input)
        after.input[list(after.input).index("b")] = "renamed"

    path = edited(fold)
    assert "its digest does not fit its graph or weights" in refusal(path)
    assert Predictor(path, "cpu", verify=False).report.golden_error < 1e-6


def test_an_unchanged_model_that_onnx_wrote_again_is_verified(edited):
    def shuffle(model):
        entries = list(model.metadata_props)[::-1]
        del model.metadata_props[:]
        model.metadata_props.extend(entries)
        model.metadata_props.add(key="author", value="me")

    assert check_digest(edited(lambda model: None)).told == VERIFIED
    assert check_digest(edited(shuffle)).told == VERIFIED


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", "7", '{"algorithm": 3}', '{"algorithm": "blake3-4mib", "graph": 1}', "[" * 99_999]
)
def test_a_damaged_digest_is_refused(edited, text):
    def damage(model):
        entry(model, DIGEST_KEY).value = text

    assert refusal(edited(damage)) == f"its digest (metadata key unet.digest) is damaged; {ADVICE}"


@pytest.mark.parametrize(("part", "parts"), [("graph", "graph or weights"), ("golden", "golden sample")])
def test_a_part_without_hash_is_told(edited, part, parts):
    def drop(model):
        one = entry(model, DIGEST_KEY)
        stored = json.loads(one.value)
        del stored[part]
        one.value = json.dumps(stored)

    assert f"its digest does not fit its {parts}; " in refusal(edited(drop))


def test_a_later_kind_of_digest_says_to_upgrade(edited):
    def later(model):
        one = entry(model, DIGEST_KEY)
        one.value = one.value.replace("blake3", "blake4")

    assert refusal(edited(later)) == (
        "has a digest of the kind blake4-4mib, expected blake3-4mib; export it again or upgrade unet-deploy"
    )


def test_a_file_without_one_is_taken_and_told(write_model):
    report = Predictor(write_model("conv", metadata={DIGEST_KEY: None}), "cpu").report
    assert report.integrity == NO_DIGEST
    assert str(report).endswith(", digest not verified (the file has none; export it again)")


def test_a_file_of_unet_export_cannot_be_without_one(edited):
    def strip(model):
        model.producer_name = "unet-deploy"
        model.metadata_props.remove(entry(model, DIGEST_KEY))

    assert refusal(edited(strip)) == f"its digest is missing, expected the metadata key unet.digest; {ADVICE}"


def test_who_needs_it_loads_a_changed_file(edited, row):
    path = edited(threshold_of_a_tenth)
    predictor = Predictor(path, "cpu", verify=False)
    assert (predictor.card.output.threshold, predictor.report.integrity) == (0.1, NOT_ASKED)
    with pytest.raises(ModelError, match="does not fit its card"):
        runtime.predict(row, path, "cpu")
    assert runtime.predict(row, path, "cpu", verify=False).mask.shape == (1, 3)
    with pytest.raises(ModelError, match="does not fit its card"):
        runtime.predict(row, path, "cpu")  # not the one that is kept


def test_a_changed_file_that_answers_its_golden_sample_wrongly_is_refused_all_the_same(edited):
    def damage(model):
        weights = numpy_helper.to_array(model.graph.initializer[0]) * 2
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, model.graph.initializer[0].name))

    with pytest.raises(ModelError, match="answers the golden sample wrongly"):
        Predictor(edited(damage), "cpu", verify=False)


def test_a_raw_file_has_one_too(make_graph, make_card, tmp_path):
    model = make_graph("conv")
    helper.set_model_props(model, {RAW_KEY: make_card("conv").to_json()})
    path = save_sealed(model, tmp_path / "raw.onnx")
    assert set(json.loads(entry(onnx.load(path), DIGEST_KEY).value)) == {"algorithm", "graph", "card"}
    assert check_digest(path).told == VERIFIED
    changed = onnx.load(path)
    entry(changed, RAW_KEY).value = make_card("softmax").to_json()
    onnx.save(changed, path)
    with pytest.raises(ModelError, match="does not fit its card; "):
        check_digest(path)


def test_a_file_that_ends_early_is_no_onnx_file(sealed):
    sealed.write_bytes(sealed.read_bytes()[:-9])
    with pytest.raises(ModelError, match="is not an ONNX file, or is truncated"):
        check_digest(sealed)
