"""Runs: one question each, from acceptance to a terminal state."""
