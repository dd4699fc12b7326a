"""Outlines enclose exactly the pixels of their region, in one orientation, and do not fail on anything."""

import numpy as np
import pytest
from outlines import area, filled

from runtime.errors import ConfigError
from runtime.images.polygons import box_of, bridged, polygons_of, ring_area


def region_of(*rows):
    return np.array([[character == "#" for character in row] for row in rows])


def corners(ring):
    """The corners from the smallest one on, so that it does not matter where OpenCV begins."""
    points = ring.tolist()
    first = points.index(min(points))
    return [tuple(point) for point in points[first:] + points[:first]]


def test_one_pixel_is_a_square_of_area_one():
    ((outer, holes),) = polygons_of(region_of("...", "..#"))
    assert outer.dtype == np.float32
    assert corners(outer) == [(2, 1), (3, 1), (3, 2), (2, 2)]
    assert area(outer) == 1
    assert holes == []


def test_hole_turns_the_other_way_round():
    ((outer, (hole,)),) = polygons_of(region_of("####", "#..#", "####"))
    assert corners(outer) == [(0, 0), (4, 0), (4, 3), (0, 3)]
    assert corners(hole) == [(1, 1), (1, 2), (3, 2), (3, 1)]
    assert (area(outer), area(hole)) == (12, -2)


def test_corners_that_point_in_are_kept():
    ((outer, _),) = polygons_of(region_of("#..", "##.", "###"))
    assert corners(outer) == [(0, 0), (1, 0), (1, 1), (2, 1), (2, 2), (3, 2), (3, 3), (0, 3)]


def test_parts_come_largest_first_and_an_island_in_a_hole_is_a_part():
    parts = polygons_of(region_of("#.#####", "..#...#", "#.#.#.#", "#.#...#", "#.#####"))
    assert [(area(outer), list(map(area, holes))) for outer, holes in parts] == [(25, [-9]), (3, []), (1, []), (1, [])]


def test_parts_that_touch_at_a_corner_are_one():
    ((outer, _),) = polygons_of(region_of("#.", ".#"))
    assert area(outer) == 2
    assert sorted(map(tuple, outer.tolist())) == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 1), (1, 2), (2, 1), (2, 2)]


def test_parts_that_touch_at_a_corner_are_two_where_no_outline_may_touch_itself():
    region = region_of(".....", ".#...", "..##.", "...##")
    (larger, _), (smaller, _) = polygons_of(region, connectivity=4)
    assert (area(larger), area(smaller)) == (4, 1)
    assert corners(smaller) == [(1, 1), (2, 1), (2, 2), (1, 2)]
    assert len(corners(larger)) == 8


def test_no_outline_touches_itself_if_parts_share_edges():
    random = np.random.default_rng(13)
    for _ in range(60):
        size = tuple(random.integers(1, 14, 2))
        region = random.random(size) < 0.5
        parts = polygons_of(region, connectivity=4)
        assert np.array_equal(filled(parts, size), region)
        assert [area(outer) for outer, _ in parts] == sorted((area(outer) for outer, _ in parts), reverse=True)
        for ring in (ring for outer, holes in parts for ring in (outer, *holes)):
            assert len(set(map(tuple, ring.tolist()))) == len(ring)


def test_a_polygon_with_holes_is_one_ring_with_the_same_pixels():
    (part,) = polygons_of(region_of("########", "#.##...#", "###.#.##", "########"))
    ring = bridged(part)
    assert len(part.holes) == 3
    assert len(ring) == len(part.outer) + sum(len(hole) + 2 for hole in part.holes)
    assert area(ring) == ring_area(ring) == 32 - 6
    ((plain, _),) = polygons_of(region_of("#"))
    assert bridged(polygons_of(region_of("#"))[0]).tolist() == plain.tolist()


def test_holes_that_touch_at_a_corner_are_two():
    ((_, holes),) = polygons_of(region_of("####", "#.##", "##.#", "####"))
    assert [area(hole) for hole in holes] == [-1, -1]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_any_region_is_enclosed_exactly(share):
    random = np.random.default_rng(11)
    for _ in range(60):
        size = tuple(random.integers(1, 14, 2))
        region = random.random(size) < share
        parts = polygons_of(region)
        assert np.array_equal(filled(parts, size), region)
        assert all(area(outer) > 0 and all(area(hole) < 0 for hole in holes) for outer, holes in parts)
        points = np.concatenate([outer for outer, _ in parts]) if parts else np.zeros((0, 2))
        assert box_of(region) == ((*points.min(axis=0), *points.max(axis=0)) if parts else None)


def test_no_point_lies_between_two_on_a_line():
    region = np.random.default_rng(12).random((30, 40)) < 0.6
    for outer, holes in polygons_of(region):
        for ring in (outer, *holes):
            before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
            assert (np.abs(before).sum(axis=1) > 0).all()
            assert ((before * after).sum(axis=1) <= 0).all()  # turns, at a corner or back


def test_tolerance_straightens_steps_and_stays_near():
    size = 60
    region = np.tri(size, dtype=bool)  # a staircase from the top left to the bottom right corner
    ((exact, _),) = polygons_of(region)
    ((smooth, _),) = polygons_of(region, tolerance=1)
    assert len(exact) == 2 * size + 2
    assert len(smooth) <= 4
    assert area(smooth) == pytest.approx(region.sum(), abs=size)


def test_small_parts_survive_any_tolerance():
    ((outer, (hole,)),) = polygons_of(region_of("###", "#.#", "###"), tolerance=100)
    assert (area(outer), area(hole)) == (9, -1)


@pytest.mark.parametrize("region", [np.zeros((3, 4), bool), np.zeros((0, 4), bool)], ids=["empty", "no pixels"])
def test_nothing_has_neither_box_nor_polygons(region):
    assert box_of(region) is None
    assert polygons_of(region) == []


def test_box_ends_after_the_last_pixel():
    assert box_of(region_of(".....", "..#..", "...#.")) == (2, 1, 4, 3)


def test_regions_may_be_views():
    region = region_of("##..", "#...", "....")
    assert box_of(region[::-1, ::-1]) == (2, 1, 4, 3)
    assert area(polygons_of(region.T)[0].outer) == 3
    assert polygons_of(region[:, ::2])[0].outer.max() == 2


@pytest.mark.parametrize("tolerance", [-1, float("nan"), float("inf")])
def test_tolerance_out_of_its_bounds_is_refused(tolerance):
    with pytest.raises(ConfigError) as caught:
        polygons_of(np.ones((2, 2), bool), tolerance)
    assert str(caught.value) == f"tolerance: found {tolerance}, expected a number of pixels, 0 or more"
