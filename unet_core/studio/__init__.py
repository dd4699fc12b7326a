"""The renderer of the turntable: procedural cars in a studio, one picture for each view."""
