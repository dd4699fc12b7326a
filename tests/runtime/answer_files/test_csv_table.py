"""Tables of areas: their numbers, and what is read back of them."""

import pytest
from answers import EACH, ONE, THREE, answer_of, overlapping_classes

from runtime.errors import OutputError
from runtime.output_formats import TABLES

HEAD = "image,width,height,class,area,share,x0,y0,x1,y1\n"
CAR = HEAD + "a.png,4,2,road,5,0.625000,0,0,4,2\na.png,4,2,car,3,0.375000,1,0,3,2\na.png,4,2,tree,0,0.000000,,,,\n"
ANSWER = answer_of([[0, 1, 1, 0], [0, 1, 0, 0]])


@pytest.fixture
def write(tmp_path):
    def call(names="a.png", answer=ANSWER, keep=False):
        with TABLES["areas"].open(tmp_path / "areas.csv", answer.output, keep=keep) as file:
            for name in names.split():
                file.add(name, answer)
        return tmp_path / "areas.csv"

    return call


def test_every_class_of_an_image_has_its_area_share_and_box(write):
    assert write().read_text() == CAR
    assert write(answer=answer_of([[0, 1]], ONE)).read_text() == HEAD + "a.png,2,1,car,1,0.500000,1,0,2,1\n"
    rows = write(answer=overlapping_classes()).read_text().splitlines()[1:]
    assert [row.split(",")[3:6] for row in rows] == [
        ["hair", "3", "0.500000"],
        ["hat", "3", "0.500000"],
        ["face", "0", "0.000000"],
    ]


def test_a_table_that_is_added_to_is_as_if_written_at_once(write):
    whole = write("a.png b.png c.png").read_text()
    write("a.png b.png")
    assert write("c.png", keep=True).read_text() == whole


@pytest.mark.parametrize("kind", ["areas", "rle-csv"])
def test_names_with_line_breaks_are_read_back(kind, tmp_path):
    names, path, table = ["c\rr.png", "n\nl.png", "b\r\nb.png", 'q"u,.png'], tmp_path / "table.csv", TABLES[kind]
    with table.open(path, ONE) as file:
        for name in names:
            file.add(name, answer_of([[0, 1]], ONE))
    assert [name for name, _ in table.layout(ONE).read(path)] == names


@pytest.mark.parametrize("rest", ["b.png,4,2,road,5,0.625000,0,0,4,2\n", "b.png,4,2,ro", "b.png,4,2,road,5,0.6\n"[:-1]])
def test_an_image_whose_rows_are_truncated_is_left_out(write, rest):
    path = write()
    path.write_text(CAR + rest)
    assert [name for name, _ in TABLES["areas"].layout(THREE).read(path)] == ["a.png"]
    assert write("b.png", keep=True).read_text() == CAR + CAR.removeprefix(HEAD).replace("a.png", "b.png")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "a,b\n",
            "is not a table of image,width,height,class,area,share,x0,y0,x1,y1, so nothing can be added; remove it",
        ),
        (CAR + "b.png,1\n", "line 5 has 2 fields, expected 10; remove it"),
        (
            CAR.replace("tree", "bus"),
            "a.png: found the classes road, car, bus, expected road, car, tree; remove it",
        ),
    ],
)
def test_another_table_is_not_added_to(write, text, reason):
    path = write()
    path.write_text(text)
    with pytest.raises(OutputError) as caught:
        write("b.png", keep=True)
    assert str(caught.value) == f"{path}: {reason}"
    assert path.read_text() == text


def test_the_same_table_of_another_model_is_not_added_to(write):
    path = write(answer=overlapping_classes())
    with pytest.raises(OutputError, match=r"a\.png: found the classes hair, hat, face, expected road, car, tree;"):
        write("b.png", keep=True)
    assert path.read_text().count("\n") == 1 + len(EACH.classes)
