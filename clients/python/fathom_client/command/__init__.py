"""The `fathom` command; `main` is its entry."""
