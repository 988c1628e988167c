"""A run's Python session: opened, lost and rebuilt, and the code that is executed in it."""
