import numpy as np
import onnx
import pytest
from networks import make_card, make_network

from export.graph import build_graph
from export.proof import (
    MAX_ERROR,
    Case,
    answers_in,
    cases,
    depends_on_batch,
    expected_answers,
    graph_run,
    make_golden,
    network_run,
    parity,
    proof_rows,
    proof_shapes,
    worst,
)
from runtime.card import OutputSpec, Parity
from runtime.errors import ProofError
from runtime.model_file.golden import golden_image
from unet_core.model import Segmenter

BINARY = OutputSpec()
THREE = OutputSpec(classes=("a", "b", "c"), activation="softmax")
EACH = OutputSpec(classes=("a", "b", "c"), activation="sigmoids", threshold=0.5)


def plane(*values):
    return np.array([[values]], np.float32)[0]


def test_parity_of_equals():
    assert parity(plane(0.1, 0.9), plane(0.1, 0.9), BINARY) == Parity(
        max_abs_error=0, flipped=0, iou=1, flip_distance=0
    )


def test_parity_by_hand():
    found = parity(plane(0.2, 0.6, 0.9, 0.9), plane(0.2, 0.4, 0.9, 0.7), BINARY)
    assert found.max_abs_error == pytest.approx(0.2)
    assert found.flipped == 0.25
    assert found.iou == pytest.approx(2 / 3)
    assert found.flip_distance == pytest.approx(0.1)


def test_parity_of_several_classes_by_hand():
    reference = np.array([[0.5, 0.1, 0.2], [0.4, 0.8, 0.3], [0.1, 0.1, 0.5]], np.float32)[:, None]  # a b c
    answer = np.array([[0.45, 0.1, 0.2], [0.45001, 0.8, 0.3], [0.1, 0.1, 0.5]], np.float32)[:, None]  # b b c
    found = parity(answer, reference, THREE)
    assert found.flipped == pytest.approx(1 / 3)
    assert found.iou == pytest.approx((0 + 1 / 2 + 1) / 3)
    assert found.flip_distance == pytest.approx(0.1)


def test_parity_of_classes_that_overlap_by_hand():
    reference = np.array([[0.6, 0.9, 0.2, 0.1], [0.8, 0.9, 0.1, 0.1], [0.1, 0.2, 0.3, 0.4]], np.float32)[:, None]
    answer = np.array([[0.6, 0.3, 0.2, 0.1], [0.8, 0.2, 0.6, 0.1], [0.1, 0.2, 0.3, 0.4]], np.float32)[:, None]
    found = parity(answer, reference, EACH)  # the second pixel loses both of its classes, the third one wins b
    assert found.max_abs_error == pytest.approx(0.7)
    assert found.flipped == 2 / 4  # pixels, however many classes of theirs
    assert found.iou == pytest.approx((1 / 2 + 1 / 3) / 2)  # c occurs nowhere
    assert found.flip_distance == pytest.approx(0.4)


def test_answers_are_the_same_everywhere_if_no_plane_varies():
    masks = [np.array([[[1, 1]], [[0, 0]]]), np.array([[[1, 1]], [[0, 1]]])]
    assert answers_in(masks[:1]) == {(0, 1), (1, 0)}
    assert answers_in(masks) == {(0, 1), (1, 0), (1, 1)}
    assert answers_in([np.array([[2, 0]])]) == {(0, 0), (0, 2)}


def test_both_masks_empty_agree():
    assert parity(plane(0.1), plane(0.2), BINARY).iou == 1.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_answers_that_are_not_finite_are_the_worst_there_is(bad):
    assert parity(plane(0.1, bad), plane(0.1, 0.2), BINARY) == Parity(
        max_abs_error=1, flipped=1, iou=0, flip_distance=1
    )


def test_worst_takes_each_figure_on_its_own():
    one = Parity(max_abs_error=0.1, flipped=0.0, iou=1.0, flip_distance=0.3)
    two = Parity(max_abs_error=0.2, flipped=0.1, iou=0.9, flip_distance=0.0)
    assert worst([one, two]) == Parity(max_abs_error=0.2, flipped=0.1, iou=0.9, flip_distance=0.3)


@pytest.mark.parametrize("size", [(160, 240), (1280, 1920), (4, 8)])
def test_eight_shapes_with_one_pixel_odd_sides_batch_three_and_the_trained_size(network, size):
    shapes = proof_shapes(make_card(network, size))
    assert len(shapes) >= 8
    assert {(1, 1, 1), (1, *size)} <= set(shapes)
    assert any(batch == 3 for batch, _, _ in shapes)
    assert any(height % 2 and width % 2 and height != width for _, height, width in shapes)
    assert all(batch * height * width <= max(size[0] * size[1], 3 * 256 * 256) for batch, height, width in shapes)


@pytest.fixture(scope="module")
def expected(trained):
    pictures = trained.samples.pictures(3)
    return list(expected_answers(network_run(trained.segmenter), cases(trained.card, pictures)))


def test_rows_of_an_honest_graph(trained, expected):
    rows = proof_rows(trained.exact, expected, trained.card.output)
    synthetic = [row.shape for row in rows if row.images == "synthetic"]
    height, width = trained.card.input.size
    assert synthetic == [*proof_shapes(trained.card), (4, height, width)]
    assert [row.shape for row in rows if row.images == "data"] == [(1, height, width), (3, height, width)]
    assert 0 < max(row.parity.max_abs_error for row in rows) < 2e-5


def test_a_row_is_the_worst_of_its_pictures(trained):
    pictures = trained.samples.pictures(2)
    checked = [Case(picture[None], "data") for picture in pictures]

    def run(batch):
        return np.full(
            (1, 1, *trained.card.input.size), 0.5 if np.array_equal(batch[0], pictures[1]) else 0.2, np.float32
        )

    def reference(batch):
        return np.full((1, 1, *trained.card.input.size), 0.1, np.float32)

    (row,) = proof_rows(run, expected_answers(reference, checked), trained.card.output)
    assert row.parity.max_abs_error == pytest.approx(0.4)


@pytest.mark.parametrize("factor", [1.01, -1.0, np.nan])
def test_other_weights_show(trained, expected, scaled, factor):
    model = scaled(trained.graph, {"downs.0.conv.0.weight": factor})
    rows = proof_rows(graph_run(model), expected, trained.card.output)
    assert max(row.parity.max_abs_error for row in rows) > 10 * MAX_ERROR


def test_an_answer_of_another_shape_is_refused(trained, expected):
    with pytest.raises(
        ProofError, match=r"input \(1, 1, 1, 3\): the graph answers \(1, 1, 1\), PyTorch \(1, 1, 1, 1\)"
    ):
        proof_rows(lambda batch: trained.exact(batch)[0], expected, trained.card.output)


def test_hard_pictures_are_among_those_that_are_compared(card):
    (hard,) = (case.images for case in cases(card) if len(case.images) == 4)
    assert [image.min() for image in hard[:2]] == [0, 255]
    assert (np.diff(hard[2].astype(int), axis=0) % 255 == 0).all() and set(np.unique(hard[2])) == {0, 255}


def test_neighbours(trained):
    assert not depends_on_batch(trained.exact, trained.card)

    def by_brightness(batch):
        return trained.exact(batch) + np.float32(1e-6 * batch.mean())

    assert depends_on_batch(by_brightness, trained.card)
    assert not depends_on_batch(by_brightness, trained.card, tolerance=1e-3)

    def later_ones(batch):
        answer = trained.exact(batch).copy()
        answer[1:] = (answer[1:] + answer[:1]) / 2
        return answer

    assert depends_on_batch(later_ones, trained.card, tolerance=1e-3)


def test_sums_of_odd_widths_may_be_ordered_by_the_batch():
    """ONNX Runtime computes them in another way in a batch, so the last digits differ."""
    network = make_network(widths=(4, 6, 10), up="bilinear-wide")
    card = make_card(network, size=(32, 48))
    run = graph_run(build_graph(Segmenter(network, card).eval(), card))
    assert not depends_on_batch(run, card, tolerance=1e-6)
    assert not depends_on_batch(run, card)
    assert depends_on_batch(lambda batch: run(batch) + np.float32(1e-3 * batch.mean()), card)


def test_a_graph_that_cannot_be_loaded_is_refused(trained):
    model = onnx.ModelProto()
    model.CopyFrom(trained.graph)
    model.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(ProofError, match="the exported graph cannot be loaded") as caught:
        graph_run(model)
    assert caught.value.exit_code == 1


def test_golden_is_pytorchs_answer():
    network = make_network(in_channels=1, classes=3)
    card = make_card(network)
    segmenter = Segmenter(network, card).eval()
    golden = make_golden(segmenter, card)
    assert golden.image.shape == (56, 88, 1)
    assert golden.probability.shape == (3, 56, 88)
    assert golden.error(network_run(segmenter)) < 1e-6
    assert golden.error(lambda image: network_run(segmenter)(255 - image)) > 1e-3
    assert [one.image.shape for one in golden.others] == 2 * [(56, 88, 1)]
    assert golden.largest_error(network_run(segmenter)) < 1e-6 < golden.tf32_error
    usual = make_golden(segmenter, card, candidates=0)
    assert np.array_equal(usual.image, golden_image(1)) and usual.others == ()
