"""The cache of decoded images: what it gives is what decoding gives, whatever happened to it."""

import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image
from torch.utils.data import DataLoader

import unet_core.cache
import unet_core.records
from runtime.card import InputSpec
from runtime.errors import DataError, ImageError, OutputError
from unet_core.cache import DATA, INDEX, LOCK, Cache, open_cache, pending, prepare
from unet_core.data import EpochBatches, TrainingSet
from unet_core.labels import IGNORED, LabelSpec
from unet_core.pairs import Pair
from unet_core.records import Recipe, Records

SIZE = (16, 24)
CAR = LabelSpec(classes=("car",))
ROOT = Path(__file__).parents[2]


def recipe(fit="stretch", channels="RGB", size=SIZE, labels=CAR, **options):
    count = len(channels)
    spec = InputSpec(size=size, fit=fit, channels=channels, mean=(0.4, 0.5, 0.6)[:count], std=(0.2,) * count)
    return Recipe(input=spec, labels=labels, **options)


STRETCH = recipe()
RECORD = SIZE[0] * SIZE[1] * 4
"""Bytes of a record of `STRETCH`."""

RECIPES = {
    "stretch": STRETCH,
    "letterbox": recipe("letterbox"),
    "native": recipe("native"),
    "grey": recipe("letterbox", "L"),
    "original truth": recipe("letterbox", truth_at_original=True),
    "grey native with original truth": recipe("native", "L", truth_at_original=True),
    "draft": recipe(draft=True),
    "several classes, some pixels ignored": recipe(labels=LabelSpec(classes=("a", "b"), ignore_index=0)),
}


def write_pairs(folder, count=5, suffix=".jpg"):
    """Pictures of different sizes, with masks of 0 and 1; the last one has none."""
    folder.mkdir(exist_ok=True)
    pairs = []
    for index in range(count):
        random = np.random.default_rng(index)
        size = (40 + 8 * index, 90 - 6 * index)
        image, mask = folder / f"{index}{suffix}", folder / f"{index}.png"
        Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8)).save(image)
        Image.fromarray(random.integers(0, 2, size, np.uint8)).resize(size[::-1], 0).save(mask)
        pairs.append(Pair(image=image, mask=mask if index < count - 1 else None))
    return pairs


@pytest.fixture
def pairs(tmp_path):
    return write_pairs(tmp_path / "pictures")


@pytest.fixture
def cache(tmp_path):
    return Cache(folder=tmp_path / "kept", limit=10**9)


class Decoding:
    """Counts the pairs that are decoded."""

    def __init__(self, monkeypatch):
        self.count, self._lock, self._load = 0, threading.Lock(), unet_core.records.load_image
        monkeypatch.setattr(unet_core.records, "load_image", self)

    def __call__(self, *arguments, **options):
        with self._lock:
            self.count += 1
        return self._load(*arguments, **options)

    def since(self):
        """How many since it was asked last."""
        count, self.count = self.count, 0
        return count


@pytest.fixture
def decoding(monkeypatch):
    return Decoding(monkeypatch)


def nothing(_):
    pass


def said_by(sets, cache, advance=nothing):
    """Prepare, and give back the notes."""
    notes = []
    prepare(sets, cache, advance, notes.append)
    return notes


def kept(pairs, cache, recipe=STRETCH):
    """Records that are prepared, without a note."""
    records = Records(pairs, recipe)
    assert said_by((records,), cache) == []
    return records


def assert_exact(records):
    """Every record equals what decoding gives, bit for bit."""
    for index, pair in enumerate(records.pairs):
        for found, expected in zip(records[index], records.recipe.make(pair), strict=True):
            assert found.dtype == np.uint8 and found.flags["C_CONTIGUOUS"] and found.flags["WRITEABLE"]
            assert np.array_equal(found, expected), index


def size_of(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("kind", RECIPES)
def test_records_are_what_decoding_gives_and_nothing_is_decoded_twice(pairs, cache, decoding, kind):
    records = Records(pairs, RECIPES[kind])
    assert pending((records,), cache) == 5
    advanced = []
    assert said_by((records,), cache, advanced.append) == []
    assert (decoding.since(), records.stored, sum(advanced)) == (5, 5, 5)
    assert_exact(records)
    assert decoding.since() == 5  # the comparison's own
    fresh = Records(pairs, RECIPES[kind])
    assert pending((fresh,), cache) == 0
    unprepared = Records(pairs, RECIPES[kind])
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
    records = kept(pairs, cache, recipe("native"))
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
    prepare((records,), cache, nothing, nothing)
    assert_exact(records)


def test_other_order_recipe_or_decoder_means_other_records(pairs, cache, monkeypatch):
    folders = {cache.of(pairs, each) for each in RECIPES.values()}
    folders |= {cache.of(pairs[::-1], STRETCH), cache.of(pairs[:4], STRETCH), cache.of(pairs, recipe(size=(24, 16)))}
    monkeypatch.setattr(unet_core.cache.PIL, "__version__", "another")
    assert len(folders | {cache.of(pairs, STRETCH)}) == len(RECIPES) + 4


@pytest.mark.parametrize("done", [0, 1, 4])
def test_an_interrupted_start_goes_on_where_it_stopped(pairs, cache, decoding, monkeypatch, done):
    monkeypatch.setattr(unet_core.cache, "available_threads", lambda: 1)
    monkeypatch.setattr(unet_core.cache, "AHEAD", 2)
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
import unet_core.cache
from unet_core.cache import *
from unet_core.records import *

unet_core.cache.SAVE_SECONDS = 0
records, cache = pickle.loads(bytes.fromhex(sys.argv[1]))

def advance(_):
    print("one", flush=True)
    time.sleep(0.02)

prepare((records,), cache, advance, print)
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
    prepare((again,), cache, nothing, nothing)
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
    prepare((builder,), cache, look, nothing)
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


@contextmanager
def files_no_larger_than(size):
    """What a full disk does to a file, without filling one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_noted_and_what_is_whole_is_kept(pairs, cache, decoding, monkeypatch):
    monkeypatch.setattr(unet_core.cache, "available_threads", lambda: 1)
    monkeypatch.setattr(unet_core.cache, "AHEAD", 1)
    with files_no_larger_than(int(2.6 * RECORD)):
        for decoded in (5, 1):  # what was looked at before is only tried to be kept until that fails
            records = Records(pairs, STRETCH)
            decoding.since()
            assert said_by((records,), cache) == ["only 2 of 5 decoded images are kept: file too large"]
            assert (decoding.since(), records.stored) == (decoded, 2)
            assert (records.folder / DATA).stat().st_size == 2 * RECORD
            assert_exact(records)
    later = Records(pairs, STRETCH)
    decoding.since()
    assert pending((later,), cache) == 3
    assert said_by((later,), cache) == []
    assert (decoding.since(), later.stored) == (3, 5)
    assert_exact(later)


def test_an_index_that_cannot_be_written_is_noted_and_nothing_is_believed(pairs, cache):
    records = Records(pairs, recipe(size=(2, 2)))
    folder = cache.of(pairs, records.recipe)
    with files_no_larger_than(100):
        assert said_by((records,), cache) == [
            f"only 0 of 5 decoded images are kept: {folder / INDEX}: cannot be written (file too large); "
            "choose another place"
        ]
    assert_exact(records)
    assert pending((Records(pairs, records.recipe),), cache) == 5


def room_for(count, rows=5):
    """A limit that just so many records of `STRETCH` fit into, beside their index and the next one."""
    return count * RECORD + 2 * (rows * unet_core.records.ROW.itemsize + 700)


def test_records_are_stored_up_to_the_limit_and_a_second_start_leaves_it_at_that(pairs, tmp_path, decoding):
    cache = Cache(folder=tmp_path / "kept", limit=room_for(3))
    records = Records(pairs, STRETCH)
    sizes = []
    notes = said_by((records,), cache, lambda _: sizes.append(size_of(cache.folder)))
    assert notes == [f"only 3 of 5 decoded images are kept: {room_for(3) / 1e9:g} GB are full; more with --cache-gb"]
    assert (decoding.since(), records.stored) == (5, 3)
    assert max(*sizes, size_of(cache.folder)) <= cache.limit
    assert_exact(records)
    decoding.since()
    second = Records(pairs, STRETCH)
    assert pending((second,), cache) == 0
    assert said_by((second,), cache) == []
    assert (decoding.since(), second.stored, size_of(cache.folder) <= cache.limit) == (0, 3, True)
    assert second.has_foreground
    more = Cache(folder=cache.folder, limit=room_for(4))
    for limit, left in ((more, 1), (Cache(folder=cache.folder, limit=10**6), 1)):
        raised = Records(pairs, STRETCH)
        assert pending((raised,), limit) == left
        assert said_by((raised,), limit) == []
        assert decoding.since() == left
    assert raised.stored == 5
    assert_exact(raised)


def test_sets_that_are_prepared_together_do_not_drive_each_other_out(pairs, tmp_path, decoding):
    cache = Cache(folder=tmp_path / "kept", limit=room_for(7, rows=10))
    for expected in (10, 0):
        sets = Records(pairs, STRETCH), Records(pairs[::-1], STRETCH)
        assert pending(sets, cache) == expected
        notes = said_by(sets, cache)
        assert (decoding.since(), [records.stored for records in sets]) == (expected, [5, 2])
        assert len(notes) == (expected > 0)
    for records in sets:
        assert_exact(records)


def test_room_that_another_process_takes_meanwhile_is_respected(pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(unet_core.cache, "SAVE_SECONDS", 0)
    cache = Cache(folder=tmp_path / "kept", limit=room_for(5))
    other = cache.folder / f"records-{'f' * 32}"
    other.mkdir(parents=True)

    def advance(_):
        with open(other / DATA, "ab") as file:
            file.write(bytes(RECORD))

    records = Records(pairs, STRETCH)
    with FileLock(other / LOCK):
        assert len(said_by((records,), cache, advance)) == 1
    assert records.stored == 2


def test_the_longest_unused_make_room(pairs, tmp_path):
    cache = Cache(folder=tmp_path / "kept", limit=10**6)
    old = [kept(pairs[:3], cache), kept(pairs[:4], cache), kept(pairs[1:4], cache), kept(pairs[2:], cache)]
    for age, records in zip((5, 1, 9, 7), old, strict=True):
        os.utime(records.folder / INDEX, (1e9 - age, 1e9 - age))
    unfinished = cache.folder / f"records-{'0' * 32}"
    unfinished.mkdir()
    (unfinished / DATA).write_bytes(bytes(100))
    (cache.folder / "photos").mkdir()
    (cache.folder / "photos" / "mine.jpg").write_bytes(bytes(10**6))
    (cache.folder / "records-of-mine").mkdir()
    (cache.folder / "records-of-mine" / INDEX).write_bytes(bytes(10))
    os.utime(cache.folder / "records-of-mine" / INDEX, (1, 1))
    limited = Cache(folder=cache.folder, limit=size_of(cache.folder) - 10**6)
    with FileLock(old[2].folder / LOCK):
        assert kept(pairs, limited).stored == 5
    assert [records.folder.exists() for records in old] == [False, True, True, False]
    assert not unfinished.exists()
    assert (cache.folder / "photos" / "mine.jpg").exists()
    assert (cache.folder / "records-of-mine" / INDEX).exists()


def test_a_lower_limit_is_kept_also_where_nothing_is_left_to_do(pairs, cache):
    other, own = kept(pairs[1:], cache), kept(pairs, cache)
    again = Records(pairs, STRETCH)
    lower = Cache(folder=cache.folder, limit=size_of(own.folder) + 10)
    assert pending((again,), lower) == 0
    prepare((again,), lower, nothing, nothing)
    assert (other.folder.exists(), own.folder.exists()) == (False, True)


def test_two_that_make_the_same_records_do_the_work_once(pairs, cache, decoding):
    first, second = Records(pairs, STRETCH), Records(pairs, STRETCH)
    begun, waiting, notes = threading.Event(), threading.Event(), []

    def note(text):
        notes.append(text)
        waiting.set()

    def come_later():
        begun.wait(10)
        prepare((second,), Cache(folder=cache.folder, limit=cache.limit), nothing, note)

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


def test_no_gigabytes_are_no_cache():
    assert open_cache("", 0.0) is None


def test_an_explicit_folder_is_made_and_one_that_cannot_be_is_refused(tmp_path):
    cache = open_cache(str(tmp_path / "a" / "b"), 1.5)
    assert cache == Cache(folder=tmp_path / "a" / "b", limit=1_500_000_000) and cache.folder.is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError) as caught:
        open_cache(str(tmp_path / "file" / "kept"), 1.0)
    assert str(caught.value) == (
        f"{tmp_path / 'file' / 'kept'}: cannot create this folder (not a directory); choose another one"
    )


def test_a_users_folder_that_cannot_be_made_is_noted_once_and_done_without(pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(unet_core.cache, "user_cache_path", lambda name: tmp_path / "file" / name)
    cache = open_cache("", 1.0)
    assert cache.folder == tmp_path / "file" / "unet-deploy" / "decoded"
    (tmp_path / "file").write_text("")
    sets = Records(pairs, STRETCH), Records(pairs[:2], STRETCH)
    assert pending(sets, cache) == 7
    assert said_by(sets, cache) == [
        f"decoded images are not kept: {cache.folder}: cannot create this folder (not a directory); choose another one"
    ]
    for records in sets:
        assert records.stored == 0
        assert_exact(records)


def test_a_cache_that_may_only_be_read_is_read(pairs, cache, decoding, monkeypatch):
    kept(pairs, cache)

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    for name in ("utime", "fsync"):
        monkeypatch.setattr(unet_core.cache.os, name, refused)
    monkeypatch.setattr(unet_core.cache, "FileLock", refused)
    decoding.since()
    assert kept(pairs, cache).stored == 5
    assert decoding.since() == 0
    records = Records(pairs[1:], STRETCH)
    assert said_by((records,), cache) == ["decoded images are not kept: [Errno 13] Permission denied"]
    assert_exact(records)


def test_problems_of_all_sets_are_listed_together_and_the_good_ones_are_kept(pairs, tmp_path, cache, decoding):
    Image.new("L", (20, 10)).save(pairs[1].mask)
    content = pairs[3].image.read_bytes()
    pairs[3].image.write_bytes(content[: len(content) // 2])
    others = write_pairs(tmp_path / "others", 4)
    Image.new("L", (90, 40), 7).save(others[0].mask)
    others[2].image.unlink()  # what is gone has no identity, so this set is looked at anew each time
    for left in (9, 2 + 4):
        sets = Records(pairs, recipe(draft=True)), Records(others, STRETCH)
        assert pending(sets, cache) == left
        with pytest.raises(DataError) as caught:
            prepare(sets, cache, nothing, nothing)
        assert decoding.since() == left
        message = str(caught.value)
        assert message.startswith(
            "4 of 9 pairs cannot be used, mend or remove them: "
            f"{pairs[1].mask}: is 20x10, expected 84x48 as 1.jpg; {pairs[3].image}: is damaged or cut off ("
        )
        assert message.endswith(f"; {others[2].image}: no such file")
        assert f"; {others[0].mask}: has the mask values 7, expected 0 and 255, or 0 and 1" in message


@pytest.mark.parametrize("draft", [False, True])
@pytest.mark.parametrize("suffix", [".jpg", ".tif", ".png"])
def test_images_that_are_turned_fit_masks_as_displayed(tmp_path, draft, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6
    image, mask = tmp_path / f"turned{suffix}", tmp_path / "mask.png"
    Image.effect_noise((400, 200), 90).convert("RGB").save(image, exif=exif)
    turned = recipe(draft=draft, truth_at_original=True)
    Image.new("L", (200, 400), 255).save(mask)
    assert turned.make(Pair(image=image, mask=mask))[1].shape == (400, 200)
    assert (turned.make(Pair(image=image))[1] == np.full((400, 200), IGNORED)).all()
    Image.new("L", (400, 200)).save(mask)
    with pytest.raises(ImageError) as caught:
        turned.make(Pair(image=image, mask=mask))
    assert str(caught.value) == f"{mask}: is 400x200, expected 200x400 as turned{suffix}"


def test_draft_changes_pixels_a_little_and_labels_not_at_all(tmp_path):
    rough = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    pair = Pair(image=tmp_path / "a.jpg", mask=tmp_path / "a.png")
    Image.fromarray(rough).resize((1918, 1280), Image.Resampling.BICUBIC).save(pair.image, quality=90)
    Image.fromarray((rough[:, :, 0] > 200).astype(np.uint8)).resize((1918, 1280), 0).save(pair.mask)
    for fit in ("stretch", "letterbox"):
        whole = recipe(fit, size=(160, 240)).make(pair)
        drafted = recipe(fit, size=(160, 240), draft=True).make(pair)
        difference = np.abs(whole[0].astype(int) - drafted[0])
        assert 0 < difference.mean() < 2
        assert np.array_equal(whole[1], drafted[1])


def test_few_pairs_are_decoded_ahead(tmp_path, cache, decoding, monkeypatch):
    monkeypatch.setattr(unet_core.cache, "available_threads", lambda: 2)
    pairs = write_pairs(tmp_path / "pictures", 6) * 8
    ahead = []

    def advance(_):
        ahead.append(decoding.count - len(ahead))

    prepare((Records(pairs, STRETCH),), cache, advance, nothing)
    assert len(ahead) == 48
    assert max(ahead) <= 2 * unet_core.cache.AHEAD
