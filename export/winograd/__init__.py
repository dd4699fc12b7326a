"""3x3 convolutions by Winograd's filtering, for files that run on CPUs."""
