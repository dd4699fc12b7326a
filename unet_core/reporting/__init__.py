"""Output of a run: tables, progress bars, TensorBoard events, panels and curves."""
