"""The conversation with the root model: what it is told, kept within its window."""
