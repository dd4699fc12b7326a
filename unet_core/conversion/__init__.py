"""Data sets in the layouts of other programs, read and written anew in the layout that training takes."""
