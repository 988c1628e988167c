# Expect: completed
# Then: kept
"""The network, by its names and by descriptors that might be sockets already."""

tries = [
    lambda: __import__("socket").socket(),
    lambda: __import__("socket").create_connection(("127.0.0.1", 80)),
    lambda: __import__("socket").socket(fileno=3),
    lambda: __import__("socket").socketpair(),
    lambda: __import__("socket").getaddrinfo("localhost", 80),
    lambda: __import__("urllib.request").request.urlopen("http://127.0.0.1/"),
    lambda: __import__("http.client").client.HTTPConnection("127.0.0.1").request("GET", "/"),
    lambda: __import__("ssl").create_default_context().wrap_socket(None),
    lambda: __import__("select").select([0, 1, 3], [1], [], 0),
]
refused = 0
for attempt in tries:
    try:
        attempt()
    except Exception:
        refused += 1
assert refused == len(tries), refused
