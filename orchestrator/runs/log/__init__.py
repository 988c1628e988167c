"""A run as it is kept: its record, and the log of events that is its memory."""
