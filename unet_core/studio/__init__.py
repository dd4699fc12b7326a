"""The renderer of `unet_core.turntable`: draws procedural cars on a studio turntable.

`scene.prepare_scene` builds a `Scene`, one car in its studio; `scene.draw_view` draws it from one of 16 sides.

A car is a set of vertex grids (body, four wheels, two mirrors) packed into one atlas. The body is a loft: sections
along the length, each a cubic B-spline from the floor pan over sill, belt line and roof rail to the roof. Its paint
work (glass, lamps, shut lines, ...) is a texture over the same atlas, `texels` times finer. To draw one view:

    light per vertex  ->  colour per texel  ->  the quad that each pixel sees  ->  its place in the texture  ->  colour

Units are metres. Car frame: x from nose to tail, y to the side, z up, origin on the floor below the middle. World
frame: the camera stands at negative y and looks along y. Tones are display values in 0..1 unless called linear.
"""
