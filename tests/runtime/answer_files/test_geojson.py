"""GeoJSON: polygons that enclose exactly the pixels of a class, and that all tools take for valid."""

import json

import numpy as np
from answers import ONE, answer_of, overlapping_classes, random_answers
from outlines import area, filled


def features(answer, tmp_path):
    return json.loads(answer.save(tmp_path / "a.geojson").read_text())["features"]


def test_a_file_names_size_parts_classes_and_areas(tmp_path):
    answer = answer_of([[1, 1, 1, 0], [1, 0, 1, 2], [1, 1, 1, 0]])
    found = json.loads(answer.save(tmp_path / "a.geojson").read_text())
    outer, hole = found["features"][0]["geometry"].pop("coordinates")
    assert (area(outer[:-1]), area(hole[:-1])) == (9, -1)
    assert found == {
        "type": "FeatureCollection",
        "width": 4,
        "height": 3,
        "features": [
            {
                "type": "Feature",
                "id": 1,
                "geometry": {"type": "Polygon"},
                "properties": {"class": "car", "area": 8},
            },
            {
                "type": "Feature",
                "id": 2,
                "geometry": {"type": "Polygon", "coordinates": [[[3, 1], [4, 1], [4, 2], [3, 2], [3, 1]]]},
                "properties": {"class": "tree", "area": 1},
            },
        ],
    }


def test_polygons_enclose_the_pixels_of_their_class_and_are_valid(tmp_path):
    for answer in random_answers(30):
        found = features(answer, tmp_path)
        assert [one["id"] for one in found] == list(range(1, len(found) + 1))
        for name in ("car", "tree"):
            parts = [one for one in found if one["properties"]["class"] == name]
            assert sum(one["properties"]["area"] for one in parts) == answer.area(name)
            polygons = []
            for one in parts:
                rings = one["geometry"]["coordinates"]
                assert all(ring[0] == ring[-1] and len(set(map(tuple, ring))) == len(ring) - 1 for ring in rings)
                outer, *holes = (np.array(ring[:-1]) for ring in rings)
                assert area(outer) > 0 and all(area(hole) < 0 for hole in holes)
                polygons.append((outer, holes))
            assert np.array_equal(filled(polygons, answer.shape), answer.region(name))


def test_pixels_that_touch_at_a_corner_are_two_parts(tmp_path):
    found = features(answer_of([[1, 0], [0, 1]], ONE), tmp_path)
    assert [one["geometry"]["coordinates"] for one in found] == [
        [[[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]],
        [[[1, 1], [2, 1], [2, 2], [1, 2], [1, 1]]],
    ]


def test_classes_that_overlap_and_nothing_at_all(tmp_path):
    found = [one["properties"] for one in features(overlapping_classes(), tmp_path)]
    assert found == [{"class": "hair", "area": 3}, {"class": "hat", "area": 3}]
    assert features(answer_of([[0]]), tmp_path) == []
