"""What code means, as hashes: of functions, of the modules a stage can reach, kept and compared."""
