"""Tests of the sandbox service's modules that need no guest and no sockets."""
