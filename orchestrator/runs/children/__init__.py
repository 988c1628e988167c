"""Child runs: trees of runs, and the part that each child may spend."""
