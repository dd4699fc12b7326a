"""Devices: which ones work here, sessions on each of them."""
