"""The second wall: what a process gives up before it touches untrusted input.

`walls.raise_walls` is the way in; each other module knows one kind of wall. Nothing here knows
WebAssembly, sessions or the service.
"""
