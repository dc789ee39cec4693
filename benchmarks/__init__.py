"""Named streams and networks, the same for every method; scripts that measure."""
