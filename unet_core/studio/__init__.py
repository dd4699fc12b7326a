"""Draws procedural cars on a studio turntable: the pictures of the data set that `unet_core.turntable` writes.

`prepare_scene` builds a `Scene`, one car in its studio, for any size of image from `SMALLEST` on; `draw_view` draws it
from one of `VIEWS` sides. The names in the other modules are for use among themselves.

A car is a set of vertex grids (body, four wheels, two mirrors) packed into one atlas. The body is a loft: sections
along the length, each a cubic B-spline from the floor pan over sill, belt line and roof rail to the roof. Its paint
work (glass, lamps, shut lines, ...) is a texture over the same atlas, `texels` times finer. To draw one view:

    light per vertex  ->  colour per texel  ->  which quad a pixel sees  ->  where in the texture that is  ->  colour

Units are metres. Car frame: x from nose to tail, y to the side, z up, origin on the floor below the middle. World
frame: the camera stands at negative y and looks along y. Tones are display values in 0..1 unless called linear.
"""

from unet_core.studio.scene import SMALLEST, VIEWS, Scene, draw_view, prepare_scene

__all__ = ["SMALLEST", "VIEWS", "Scene", "draw_view", "prepare_scene"]
