"""One image, the file that its answer is written to, what became of it, and the table of many."""
