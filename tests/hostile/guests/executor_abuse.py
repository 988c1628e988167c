# Expect: completed
# Then: kept
"""Executors that submit to themselves, wait for themselves, and are shut down meanwhile."""

import concurrent.futures

executor = concurrent.futures.ThreadPoolExecutor(4)
ended = []


def nest(depth):
    ended.append(depth)
    return executor.submit(nest, depth - 1).result() if depth else executor.shutdown(wait=True)


for attempt in (
    lambda: executor.submit(nest, 20).result(),
    lambda: executor.submit(print).result(),
    lambda: concurrent.futures.ThreadPoolExecutor(-1),
    lambda: list(executor.map(lambda *_: 1 / 0, range(3))),
    lambda: concurrent.futures.ThreadPoolExecutor().submit(lambda: exit(3)).result(),
    lambda: concurrent.futures.ThreadPoolExecutor().submit(None).result(),
):
    try:
        attempt()
    except BaseException as error:
        ended.append(type(error).__name__)
assert len(ended) > 5, ended
