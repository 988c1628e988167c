"""What tenants, keys, runs and subtrees of runs have taken, and hold, of what they may take."""
