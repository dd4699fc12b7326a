"""The steps of a first run on a new GPU, each in a process of its own, and their report."""
