"""Profiles: what runs of one kind have in common, and the host tools that they may call."""
