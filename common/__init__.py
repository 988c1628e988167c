"""Plumbing that every service uses: configuration, errors, servers, channels, telemetry, tokens.

Nothing here knows what a run, a session or a model is.
"""
