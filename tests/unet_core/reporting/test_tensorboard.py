"""TensorBoard reads the values that were written."""

import io
import math

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from runtime.errors import OutputError
from unet_core.reporting.tensorboard import TensorBoardWriter

ROW = {
    "epoch": 1.0,
    "lr": 0.25,
    "pixel_dice": 0.5,
    "pixel_dice black car": 0.75,
    "train_loss": math.nan,
    "iou": math.inf,
}
PICTURE = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)


@pytest.fixture
def read(tmp_path):
    """Reads the events: {name: {epoch: value}} of scalars, and of pictures."""

    def read():
        events = EventAccumulator(str(tmp_path / "board"))
        events.Reload()
        scalars = {
            name: {event.step: event.value for event in events.Scalars(name)} for name in events.Tags()["scalars"]
        }
        pictures = {
            name: {
                event.step: np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))
                for event in events.Images(name)
            }
            for name in events.Tags()["images"]
        }
        return scalars, pictures

    return read


def test_figures_come_back_without_those_that_are_not_finite(tmp_path, read):
    with TensorBoardWriter(tmp_path / "board", 1) as board:
        board.scalars(ROW)
        assert read()[0] == {"lr": {1: 0.25}, "pixel_dice": {1: 0.5}, "pixel_dice/black car": {1: 0.75}}
        board.scalars({"epoch": 2.0, "lr": 0.125, "train_loss": 3.0})
    assert read()[0]["lr"] == {1: 0.25, 2: 0.125}
    assert read()[0]["train_loss"] == {2: 3.0}


def test_pictures_come_back_as_they_were(tmp_path, read):
    with TensorBoardWriter(tmp_path / "board", 1) as board:
        board.picture("worst/01", PICTURE, 7)
        found = read()[1]
    assert found.keys() == {"worst/01"} and found["worst/01"].keys() == {7}
    assert np.array_equal(found["worst/01"][7], PICTURE)


def test_a_resumed_run_replaces_the_events_of_its_earlier_try(tmp_path, read):
    with TensorBoardWriter(tmp_path / "board", 1) as board:
        for epoch in (1, 2, 3):
            board.scalars({"epoch": epoch, "lr": epoch / 8})
            board.picture("worst/01", PICTURE, epoch)
    with TensorBoardWriter(tmp_path / "board", 2) as board:
        board.scalars({"epoch": 2, "lr": 0.5})
    scalars, pictures = read()
    assert scalars == {"lr": {1: 0.125, 2: 0.5}}
    assert pictures["worst/01"].keys() == {1}


def test_without_a_folder_nothing_happens(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with TensorBoardWriter(None, 1) as board:
        board.scalars(ROW)
        board.picture("worst/01", PICTURE, 1)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "board").write_text("in the way")
    with pytest.raises(OutputError) as error:
        TensorBoardWriter(tmp_path / "board", 1)
    assert str(error.value) == (
        f"{tmp_path / 'board'}: cannot be written (file exists); fix that, or train with --no-tensorboard"
    )


@pytest.fixture
def board(tmp_path):
    return TensorBoardWriter(tmp_path / "board", 1)


def full(*_):
    raise OSError(28, "No space left on device")


def test_a_full_disk_is_one_line(board, monkeypatch):
    with board, monkeypatch.context() as disk:
        disk.setattr(EventFileWriter, "flush", full)
        for write in (lambda: board.scalars(ROW), lambda: board.picture("worst/01", PICTURE, 1)):
            with pytest.raises(OutputError, match=r"board: cannot be written \(no space left on device\); fix that"):
                write()


def test_a_full_disk_at_the_end_hides_no_other_error(board, monkeypatch):
    with monkeypatch.context() as disk:
        disk.setattr(EventFileWriter, "close", full)
        with pytest.raises(ZeroDivisionError), board:
            _ = 1 / 0
        with pytest.raises(OutputError, match="cannot be written"):
            board.__exit__(None, None, None)
    board.__exit__(None, None, None)
