"""The cache of decoded images: what it gives is what decoding gives, whatever happened to it."""

import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from caching import DECODERS, RECORD, STRETCH, assert_exact, decoder, kept, nothing, said_by, write_pairs
from imported import imported
from PIL import Image
from torch.utils.data import DataLoader

import unet_core.data.cache
import unet_core.data.records
from unet_core.data.cache import DATA, INDEX, LOCK, Cache, check_and_cache, pending
from unet_core.data.dataset import EpochBatches, TrainingSet
from unet_core.data.pairs import Pair
from unet_core.data.records import Records

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("kind", DECODERS)
def test_records_are_what_decoding_gives_and_nothing_is_decoded_twice(pairs, cache, decoding, kind):
    records = Records(pairs, DECODERS[kind])
    assert pending((records,), cache) == 5
    advanced = []
    assert said_by((records,), cache, advanced.append) == []
    assert (decoding.since(), records.stored, sum(advanced)) == (5, 5, 5)
    assert_exact(records)
    assert decoding.since() == 5  # the comparison's own
    fresh = Records(pairs, DECODERS[kind])
    assert pending((fresh,), cache) == 0
    unprepared = Records(pairs, DECODERS[kind])
    assert said_by((unprepared,), cache) == []
    again = [records, fresh, unprepared, pickle.loads(pickle.dumps(records))]
    pictures = [[each[index][0].tobytes() for index in range(5)] for each in again]
    assert decoding.count == 0
    assert pictures[0] == pictures[1] == pictures[2] == pictures[3]
    assert_exact(fresh)


def test_records_know_about_foreground_also_from_the_cache(tmp_path, cache):
    pairs = write_pairs(tmp_path / "pictures", 3)
    Image.new("L", pairs[0].image and (90, 40)).save(pairs[0].mask)
    for some, part in ((False, [pairs[0], pairs[2]]), (True, pairs)):
        for _ in range(2):
            assert kept(part, cache).has_foreground is some


def test_without_a_cache_all_are_looked_at_once_and_decoded_on_demand(pairs, decoding):
    records = Records(pairs, STRETCH)
    assert pending((records,), None) == 5
    assert said_by((records,), None) == []
    assert (decoding.since(), records.stored, pending((records,), None)) == (5, 0, 0)
    assert records.has_foreground
    assert_exact(records)


def test_workers_that_start_afresh_decode_nothing_either(pairs, cache):
    records = kept(pairs, cache, decoder("native"))
    items = [TrainingSet(records, seed=0, augment="strong")[1, index] for index in range(5)]
    for pair in pairs:
        pair.image.unlink()
    batches = EpochBatches(5, 1, seed=0)
    loader = DataLoader(
        TrainingSet(records, seed=0, augment="strong"),
        batch_sampler=batches,
        num_workers=1,
        multiprocessing_context="spawn",
    )
    for index, (image, labels) in zip(batches.order(), loader, strict=True):
        assert (image[0] == items[index][0]).all() and (labels[0] == items[index][1]).all()


def touch(path):
    os.utime(path, ns=(0, 0))


def change_in_place(path):
    status, content = path.stat(), bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace_by_another(path):
    other = path.with_suffix(".new")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize("change", [touch, change_in_place, replace_by_another])
@pytest.mark.parametrize("part", ["image", "mask"])
def test_a_changed_file_means_other_records(tmp_path, cache, change, part):
    pairs = write_pairs(tmp_path / "pictures", suffix=".bmp")
    for pair in pairs[:-1]:  # BMP has no checksum that a changed byte would contradict
        with Image.open(pair.mask) as mask:
            mask.convert("L").save(pair.mask.with_suffix(".tif"))
    pairs = [Pair(image=pair.image, mask=pair.mask and pair.mask.with_suffix(".tif")) for pair in pairs]
    kept(pairs, cache)
    change(getattr(pairs[2], part))
    records = Records(pairs, STRETCH)
    assert pending((records,), cache) == 5
    check_and_cache((records,), cache, nothing, nothing)
    assert_exact(records)


def test_other_order_decoder_or_library_means_other_records(pairs, cache, monkeypatch):
    folders = {cache.of(pairs, each) for each in DECODERS.values()}
    folders |= {cache.of(pairs[::-1], STRETCH), cache.of(pairs[:4], STRETCH), cache.of(pairs, decoder(size=(24, 16)))}
    monkeypatch.setattr(unet_core.data.cache.PIL, "__version__", "another")
    assert len(folders | {cache.of(pairs, STRETCH)}) == len(DECODERS) + 4


@pytest.mark.parametrize("done", [0, 1, 4])
def test_an_interrupted_start_goes_on_where_it_stopped(pairs, cache, decoding, monkeypatch, done):
    monkeypatch.setattr(unet_core.data.cache, "available_threads", lambda: 1)
    monkeypatch.setattr(unet_core.data.cache, "AHEAD", 2)
    seen = []

    def interrupted(count):
        if len(seen) == done:
            raise KeyboardInterrupt
        seen.append(count)

    with pytest.raises(KeyboardInterrupt):
        said_by((Records(pairs, STRETCH),), cache, interrupted)
    assert decoding.since() <= done + 2  # what was ahead is not finished
    records = Records(pairs, STRETCH)
    assert pending((records,), cache) == 5 - done
    assert said_by((records,), cache) == []
    assert (decoding.since(), records.stored) == (5 - done, 5)
    assert_exact(records)


KILLED = """
import sys, pickle, time
import unet_core.data.cache
from unet_core.data.cache import *
from unet_core.data.records import *

unet_core.data.cache.SAVE_SECONDS = 0
records, cache = pickle.loads(bytes.fromhex(sys.argv[1]))

def advance(_):
    print("one", flush=True)
    time.sleep(0.02)

check_and_cache((records,), cache, advance, print)
"""


def test_a_killed_start_goes_on_where_it_stopped(tmp_path, cache, decoding):
    pairs = write_pairs(tmp_path / "pictures", 6) * 20
    content = pickle.dumps((Records(pairs, STRETCH), cache)).hex()
    with subprocess.Popen([sys.executable, "-c", KILLED, content], stdout=subprocess.PIPE, cwd=ROOT) as process:
        for _ in range(30):
            assert process.stdout.readline() == b"one\n"
        process.send_signal(signal.SIGKILL)
    (cache.of(pairs, STRETCH) / f".{Path(INDEX).stem}.0123abcd.npy").write_bytes(b"half")
    with open(cache.of(pairs, STRETCH) / DATA, "ab") as file:
        file.write(bytes(77))
    records = Records(pairs, STRETCH)
    left = pending((records,), cache)
    assert 0 < left <= 92
    assert said_by((records,), cache) == []
    assert (decoding.since(), records.stored) == (left, 120)
    assert_exact(records)
    assert records.stored == 120
    assert sorted(path.name for path in records.folder.iterdir()) == [INDEX, LOCK, DATA]
    assert (records.folder / DATA).stat().st_size == 120 * RECORD


def test_what_a_kill_after_the_last_record_left_is_removed(tmp_path, cache):
    pairs = write_pairs(tmp_path / "pictures", 3)
    assert said_by((Records(pairs, STRETCH),), cache) == []
    (cache.of(pairs, STRETCH) / f".{Path(INDEX).stem}.0123abcd.npy").write_bytes(b"half")
    records = Records(pairs, STRETCH)
    assert said_by((records,), cache) == []
    assert sorted(path.name for path in records.folder.iterdir()) == [INDEX, LOCK, DATA]


def cut(path):
    os.truncate(path, path.stat().st_size - 1)


def flip(path):
    content = bytearray(path.read_bytes())
    content[-30] ^= 16
    path.write_bytes(content)


DAMAGES = {
    "index cut off": (INDEX, cut),
    "index changed": (INDEX, flip),
    "index empty": (INDEX, lambda path: path.write_bytes(b"")),
    "index of zeros": (INDEX, lambda path: path.write_bytes(bytes(4))),
    "index is a zip file": (INDEX, lambda path: path.write_bytes(b"PK\3\4" + bytes(500))),
    "index gone": (INDEX, lambda path: path.unlink()),
    "data cut off": (DATA, cut),
    "data empty": (DATA, lambda path: path.write_bytes(b"")),
    "data gone": (DATA, lambda path: path.unlink()),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_files_are_not_believed(pairs, cache, decoding, kind):
    folder = kept(pairs, cache).folder
    name, damage = DAMAGES[kind]
    damage(folder / name)
    records = Records(pairs, STRETCH)
    assert pending((records,), cache) == 5
    decoding.since()
    assert said_by((records,), cache) == []
    assert (decoding.since(), records.stored) == (5, 5)
    assert_exact(records)
    assert pending((Records(pairs, STRETCH),), cache) == 0


def test_an_index_of_another_list_is_not_believed(pairs, cache):
    first, second = kept(pairs[:4], cache), Records(pairs, STRETCH)
    cache.of(pairs, STRETCH).mkdir()
    for name in (INDEX, DATA):
        (first.folder / name).rename(cache.of(pairs, STRETCH) / name)
    assert pending((second,), cache) == 5


def test_a_record_that_changed_on_disk_is_decoded_and_all_are_made_anew_by_the_next_run(pairs, cache, decoding):
    flip(kept(pairs, cache).folder / DATA)
    records = kept(pairs, cache)
    assert decoding.since() == 5
    assert_exact(records)
    assert (decoding.since(), records.stored) == (6, 4)
    again = Records(pairs, STRETCH)
    assert pending((again,), cache) == 5
    check_and_cache((again,), cache, nothing, nothing)
    assert again.stored == 5
    assert_exact(again)


def test_what_another_run_reads_stays_when_records_are_made_anew_or_removed(pairs, cache, decoding):
    reader = kept(pairs, cache)
    before = [reader[index][0] for index in range(5)]
    (reader.folder / INDEX).unlink()
    builder = Records(pairs, STRETCH)

    def look(_):
        for index in range(5):
            assert np.array_equal(reader[index][0], before[index])

    decoding.since()
    check_and_cache((builder,), cache, look, nothing)
    Cache(folder=cache.folder, limit=0).make_room(())
    assert not builder.folder.exists()
    look(1)
    assert decoding.since() == 5
    for there in (None, bytes(5 * RECORD), bytes(RECORD)):  # in another process, which finds nothing, or other things
        moved = pickle.loads(pickle.dumps(reader))
        if there is not None:
            moved.folder.mkdir(exist_ok=True)
            (moved.folder / DATA).write_bytes(there)
        assert_exact(moved)


def test_two_that_make_the_same_records_do_the_work_once(pairs, cache, decoding):
    first, second = Records(pairs, STRETCH), Records(pairs, STRETCH)
    begun, waiting, notes = threading.Event(), threading.Event(), []

    def note(text):
        notes.append(text)
        waiting.set()

    def come_later():
        begun.wait(10)
        check_and_cache((second,), Cache(folder=cache.folder, limit=cache.limit), nothing, note)

    def advance(_):
        begun.set()
        assert waiting.wait(10)

    other = threading.Thread(target=come_later)
    other.start()
    assert said_by((first,), cache, advance) == []
    other.join(10)
    assert notes == ["another process decodes the same images; waiting for it"]
    assert decoding.since() == 5
    assert (first.stored, second.stored) == (5, 5)
    assert_exact(second)


def test_few_pairs_are_decoded_ahead(tmp_path, cache, decoding, monkeypatch):
    monkeypatch.setattr(unet_core.data.cache, "available_threads", lambda: 2)
    pairs = write_pairs(tmp_path / "pictures", 6) * 8
    ahead = []

    def advance(_):
        ahead.append(decoding.count - len(ahead))

    check_and_cache((Records(pairs, STRETCH),), cache, advance, nothing)
    assert len(ahead) == 48
    assert max(ahead) <= 2 * unet_core.data.cache.AHEAD


def test_the_cache_needs_neither_pytorch_nor_onnx_runtime():
    assert imported("import unet_core.data.cache", ("torch", "onnxruntime")) == []
