"""Image files, decoded strictly: all pixels of a file or an error, within limits."""
