"""One training run: steps, optimizer, interrupts, several processes, its folder."""
