"""Networks that are not this library's: made by their authors' code, loaded with their weights, and looked at."""
