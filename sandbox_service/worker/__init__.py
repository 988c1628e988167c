"""What runs in a worker, the jailed process in which guests are: nothing of the service runs here,
and nothing from here in the service, which meets it in frames alone.

Reads top-down from `worker`: a process has sessions (`guest_session`), a session runs a cell
(`execution`) in a guest, and what that may ask for comes by `wasi` and `guest_door`.
"""
