import matplotlib.image
import numpy as np
import pytest
from measured import CPU, ENVIRONMENT, latency, measured, measurement, noisy, peaks, stages

from benchmarks.reporting import plots
from benchmarks.reporting.plots import draw_pictures
from benchmarks.results import Results
from runtime.errors import OutputError


def run(*measurements, **others):
    return Results(
        **{"environment": ENVIRONMENT, "method": {}, "disturbance": None} | others, measurements=measurements
    )


def texts(figure):
    """Every text of a figure's panels, and its titles."""
    labels = [label for axes in figure.axes for label in axes.get_yticklabels()]
    found = [text for axes in figure.axes for text in (*axes.texts, axes.title, axes.xaxis.label, axes.yaxis.label)]
    legends = [text for axes in figure.axes if axes.get_legend() for text in axes.get_legend().get_texts()]
    return [text.get_text() for text in (*labels, *found, *legends)]


def test_every_picture_is_drawn_and_not_empty(tmp_path):
    paths = draw_pictures(measured(), tmp_path / "new")
    assert [path.name for path in paths] == [
        "latency.png",
        "roofline.png",
        "scaling.png",
        "stages.png",
        "trade-off.png",
    ]
    for path in paths:
        picture = matplotlib.image.imread(path)
        assert min(picture.shape[:2]) > 400
        assert np.ptp(picture[..., :3]) == 1.0
    assert len(list((tmp_path / "new").iterdir())) == 5


def test_only_what_was_measured_is_drawn(tmp_path):
    assert draw_pictures(run(), tmp_path) == []
    assert draw_pictures(run(measurement("latency", "of no size", CPU, "ms", 1.0)), tmp_path) == []
    assert [path.name for path in draw_pictures(run(*stages()), tmp_path)] == ["stages.png"]
    assert [path.name for path in draw_pictures(run(*latency()), tmp_path)] == ["latency.png"]


def test_the_same_results_give_the_same_picture(tmp_path):
    first, second = draw_pictures(run(*stages()), tmp_path / "a") + draw_pictures(run(*stages()), tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()


def test_a_disturbed_run_says_so_below_each_picture(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        plots.Figure, "savefig", lambda figure, path, **_: (path.write_bytes(b"PNG"), seen.append(figure))
    )
    draw_pictures(measured(disturbance="it cost $5 and $6"), tmp_path)
    assert len(seen) == 5
    for figure in seen:
        assert figure.get_supxlabel() == "Abacus 3000; model.onnx\nNot a measurement: it cost $5 and $6"


def test_bars_are_as_long_as_medians_with_their_intervals():
    times = {"eager": noisy(30.0), "ours": noisy(20.0)}
    settings = {"batch": 1, "height": 160, "width": 240, **CPU}
    rows = [measurement("latency", name, settings, "ms", values, group="a") for name, values in times.items()]
    (axes,) = plots.draw_latency(run(*rows)).axes
    assert axes.get_title() == "240x160, batch 1, cpu"
    assert [bar.get_width() for bar in axes.patches] == [one.median for one in rows]
    ends = [line.get_segments()[0][:, 0].tolist() for line in axes.collections]
    assert ends == [pytest.approx(one.interval) for one in rows]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["eager", "ours"]


def test_the_whole_interval_of_a_bar_is_seen():
    settings = {"batch": 1, "height": 160, "width": 240, **CPU}
    one = measurement("latency", "ours", settings, "ms", (1.0, 1.0, 1.0, 900.0, 900.0), group="a")
    (axes,) = plots.draw_latency(run(one)).axes
    assert one.median == 1 and axes.get_xlim()[1] > one.interval[1] == 900


def test_batches_stand_beside_each_other_and_gaps_are_named():
    figure = plots.draw_latency(run(*latency()))
    assert [axes.get_title() for axes in figure.axes] == [
        "240x160, batch 1, cpu",
        "240x160, batch 4, cpu",
        "960x640, batch 1, cpu",
        "960x640, batch 4, cpu",
    ]
    assert [text.get_text() for text in figure.axes[3].texts] == ["not measured"]


def test_machines_do_not_share_a_panel_and_precisions_are_named():
    settings = {"batch": 1, "height": 160, "width": 240}
    figure = plots.draw_latency(
        run(
            measurement("latency", "ours", settings | {"device": "cpu", "precision": "fp32"}, "ms", 9.0),
            measurement("latency", "ours", settings | {"device": "cuda:0", "precision": "fp32"}, "ms", 2.0),
            measurement("latency", "ours", settings | {"device": "cuda:0", "precision": "fp16"}, "ms", 1.0),
        )
    )
    names = [[label.get_text() for label in axes.get_yticklabels()] for axes in figure.axes]
    assert names == [["ours"], ["ours, fp32", "ours, fp16"]]


def test_the_roofline_shows_peaks_and_points_where_they_belong():
    facts = {"gflop": 96.0, "mb_moved": 480.0}
    settings = {"batch": 1, "height": 160, "width": 240, "precision": "fp32", **CPU}
    (axes,) = plots.draw_roofline(
        run(measurement("latency", "ours", settings, "ms", 600.0, facts=facts), *peaks())
    ).axes
    points = [line.get_xydata().tolist() for line in axes.lines if line.get_marker() == "o"]
    assert points == [[[200.0, pytest.approx(160.0)]]]
    roof = axes.lines[0].get_xydata()
    peak, copy = max(next(iter(peaks())).values), max(list(peaks())[-1].values)
    assert roof[0].tolist() == [pytest.approx(peak / copy), pytest.approx(peak)]
    assert any(text.startswith("peak in fp32: 2") for text in texts(axes.figure))


@pytest.mark.parametrize("kept", ["latency", "peak"])
def test_without_peaks_or_points_there_is_no_roofline(kept):
    results = measured()
    assert plots.draw_roofline(run(*results.of(kept))) is None


def test_without_a_copy_the_roof_is_flat():
    roofs = [one for one in peaks() if one.unit == "GFLOP/s"]
    (axes,) = plots.draw_roofline(run(*latency(), *roofs)).axes
    assert axes.lines[0].get_xdata()[0] == axes.get_xlim()[0]


def test_fitted_curves_pass_the_points_and_are_named_with_their_exponents():
    figure = plots.draw_scaling(measured())
    assert [axes.get_xlabel() for axes in figure.axes] == ["pixels", "images"] * 2
    assert [axes.get_ylabel() for axes in figure.axes] == ["ms", "ms", "peak MB", "peak MB"]
    assert "Predictor.run: exponent 1.04 (1.03 to 1.06)" in texts(figure)
    (points,) = (line.get_xydata() for line in figure.axes[0].lines if line.get_marker() == "o")
    (curve,) = (line.get_xydata() for line in figure.axes[0].lines if line.get_label().startswith("Predictor"))
    assert len(points) == 6
    assert points[:, 0].tolist() == curve[:, 0].tolist()
    assert points[:, 1] == pytest.approx(curve[:, 1], rel=0.05)
    assert len(figure.axes[1].lines[0].get_xdata()) == 4


def test_stages_are_stacked_to_their_sum():
    (axes,) = plots.draw_stages(run(*stages())).axes
    last = [bar for bar in axes.patches if round(bar.get_y() + bar.get_height() / 2) == 2]
    assert [bar.get_x() for bar in last[1:]] == pytest.approx([bar.get_x() + bar.get_width() for bar in last[:-1]])
    assert texts(axes.figure)[:3] == ["240x160", "960x640", "1918x1280"]
    assert f"{last[-1].get_x() + last[-1].get_width():.1f} ms" in texts(axes.figure)


def test_accuracy_stands_over_time_by_precision_and_width():
    (axes,) = plots.draw_trade_off(measured()).axes
    lines = [line for line in axes.lines if len(line.get_xdata()) == 4]
    assert [line.get_ydata()[-1] for line in lines] == pytest.approx([0.874, 0.8739, 0.870])
    assert all(np.diff(line.get_xdata()).min() > 0 for line in lines)
    named = [text for text in texts(axes.figure) if text]
    assert named[-7:] == ["fp32", "fp16", "int8", "base 8", "base 16", "base 32", "base 64"]


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        draw_pictures(measured(), tmp_path / "file")
