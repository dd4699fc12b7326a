"""Pages of TIFF files: how many, and each as a file of its own, which decodes to what tifffile reads."""

import io

import numpy as np
import pytest
import tifffile
from PIL import Image

from runtime.errors import ImageError
from runtime.image import load_image
from runtime.image_files.limits import Limits
from runtime.image_files.tiff_pages import open_page, page_sizes

PAGES = np.random.default_rng(0).integers(0, 256, (4, 70, 90), dtype=np.uint8)

LAYOUTS = {
    "one strip": {},
    "strips": {"rowsperstrip": 7},
    "tiles": {"tile": (32, 16)},
    "big-endian": {"byteorder": ">", "rowsperstrip": 7},
    "BigTIFF": {"bigtiff": True, "rowsperstrip": 7},
    "ImageJ": {"imagej": True},
    "zlib": {"compression": "zlib", "rowsperstrip": 16},
    "LZW": {"compression": "lzw", "predictor": True},
}


@pytest.fixture
def stack(tmp_path):
    def write(pages=PAGES, name="stack.tif", **options):
        tifffile.imwrite(tmp_path / name, pages, photometric=options.pop("photometric", "minisblack"), **options)
        return tmp_path / name

    return write


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_page_is_a_file_of_its_own(stack, layout, recwarn):
    path = stack(**LAYOUTS[layout])
    assert page_sizes(path) == [(90, 70)] * 4
    for index, expected in enumerate(PAGES):
        file = open_page(path, index)
        assert len(file.getvalue()) < path.stat().st_size
        with tifffile.TiffFile(io.BytesIO(file.getvalue())) as read:
            assert len(read.pages) == 1
            assert np.array_equal(read.pages[0].asarray(), expected)
        assert np.array_equal(load_image(file, "L")[:, :, 0], expected)
    assert [str(warning.message) for warning in recwarn] == []


@pytest.mark.parametrize("options", [{"compression": "tiff_lzw"}, {"compression": "jpeg"}, {"compression": "group4"}])
def test_pages_that_pillow_wrote_decode_as_pillow_does(tmp_path, options):
    path = tmp_path / "stack.tif"
    mode = "1" if options["compression"] == "group4" else "RGB"
    pictures = [Image.fromarray(page).convert(mode) for page in PAGES]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], **options)
    with Image.open(path) as whole:
        for index in range(4):
            whole.seek(index)
            assert np.array_equal(load_image(open_page(path, index)), np.asarray(whole.convert("RGB")))


def test_colours_and_16_bits_keep_their_pages(stack):
    colours = np.random.default_rng(1).integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)
    path = stack(colours, photometric="rgb")
    assert [load_image(open_page(path, index)).tolist() for index in range(3)] == colours.tolist()
    deep = stack(PAGES.astype(np.uint16) * 257, "deep.tif")
    assert np.array_equal(load_image(open_page(deep, 2), "L")[:, :, 0], PAGES[2])


def test_smaller_versions_and_masks_are_no_pages(tmp_path):
    path = tmp_path / "pyramid.tif"
    with tifffile.TiffWriter(path) as writer:
        for page in PAGES[:2]:
            writer.write(page, photometric="minisblack", contiguous=False)
            writer.write(page[::2, ::2], photometric="minisblack", subfiletype=1)
    assert page_sizes(path) == [(90, 70)] * 2
    assert np.array_equal(load_image(open_page(path, 1), "L")[:, :, 0], PAGES[1])


def test_other_files_have_no_pages(tmp_path):
    (tmp_path / "empty.tif").touch()
    Image.fromarray(PAGES[0]).save(tmp_path / "a.png")
    assert [page_sizes(tmp_path / name) for name in ("empty.tif", "a.png", "missing.tif")] == [[], [], []]


def test_a_page_that_is_missing_cut_off_or_too_large_is_one_line(stack, tmp_path):
    path = stack(compression="zlib")
    with pytest.raises(ImageError) as caught:
        open_page(path, 4)
    assert str(caught.value) == f"{path}, page 5: is damaged or truncated (there is no such page); replace it"
    with pytest.raises(ImageError, match=r"stack.tif, page 2: has more bytes than the 100 that are read"):
        open_page(path, 1, Limits(file_bytes=100))
    with pytest.raises(ImageError, match=r"missing.tif, page 1: no such file"):
        open_page(tmp_path / "missing.tif", 0)
    file = open_page(path, 0)
    path.write_bytes(file.getvalue()[:-50])
    with pytest.raises(ImageError, match=r"stack.tif, page 1: is damaged or truncated"):
        load_image(open_page(path, 0))


def test_a_list_of_pages_that_is_damaged_is_refused_behind_its_second_page(stack):
    content = bytearray(stack(rowsperstrip=70).read_bytes())
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        starts = [page.offset for page in file.pages]
    for keep, number in ((1, None), (2, 2), (3, 3)):
        path = stack(name=f"{keep}.tif", rowsperstrip=70)
        changed = bytearray(content)
        place = starts[keep - 1] + 2 + 12 * int.from_bytes(changed[starts[keep - 1] :][:2], "little")
        changed[place : place + 4] = (starts[0] if keep == 3 else 2**31).to_bytes(4, "little")
        path.write_bytes(changed)
        if number is None:
            assert page_sizes(path) == [(90, 70)]
            continue
        with pytest.raises(ImageError) as caught:
            page_sizes(path)
        assert str(caught.value) == f"{path}: is damaged or truncated behind page {number}; replace it"


def test_damage_anywhere_is_an_error_of_ours(stack):
    """Every byte of the directories, replaced: pages are listed and opened, or refused."""
    content = bytearray(stack(PAGES[:2, :4, :6]).read_bytes())
    path = stack(name="damaged.tif")
    for place in range(len(content)):
        for value in (0, 255):
            changed = content.copy()
            changed[place] = value
            path.write_bytes(changed)
            for index in range(2):
                try:
                    page_sizes(path)
                    load_image(open_page(path, index))
                except ImageError:
                    pass
