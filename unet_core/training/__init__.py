"""The training of a run, from its settings to its best weights."""
