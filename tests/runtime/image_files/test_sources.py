import sys
from types import ModuleType

from PIL import Image

from runtime.image_files.sources import is_picture


def test_a_picture_is_told_while_another_thread_imports_pillow(monkeypatch):
    picture = Image.new("L", (1, 1))
    assert is_picture(picture) and not is_picture("a.png")
    monkeypatch.setitem(sys.modules, "PIL.Image", ModuleType("PIL.Image"))  # as it is when its import has just begun
    assert not is_picture("a.png")
    monkeypatch.delitem(sys.modules, "PIL.Image")
    assert not is_picture("a.png")
