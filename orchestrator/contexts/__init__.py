"""Contexts: the data that runs read, stored once by content."""
