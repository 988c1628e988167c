"""The sandbox service: untrusted Python in WebAssembly sessions, in worker processes."""
