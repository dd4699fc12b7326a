"""What a run shows: tables, progress bars, TensorBoard, panels and curves."""
