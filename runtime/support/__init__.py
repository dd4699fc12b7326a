"""What every room needs and none is about: files, threads, CPU cores, checks of arguments."""
