"""The parts of the card: the classes of its fields with their bounds and defaults, and reading them from JSON."""
