"""A process that read through obstore and forks. Run by test_remote_store.py.

Usage: forked_reader.py fork|spawn URL NAME OPTIONS_AS_JSON
"""

import json
import multiprocessing
import os
import sys
import threading

from shardstream.storage.remote_store import RemoteStore


def read(url: str, name: str, options: dict[str, str]) -> None:
    """Read through a store of its own, and say through which client."""
    store = RemoteStore(url, options)
    print(len(store.get(name, max_bytes=1000)), type(store._client).__name__, flush=True)


def main() -> None:
    how, url, name, options = sys.argv[1:3] + sys.argv[3:4] + [json.loads(sys.argv[4])]
    store = RemoteStore(url, options)
    print(len(store.get(name, max_bytes=1000)), type(store._client).__name__, flush=True)
    if how == "spawn":
        process = multiprocessing.get_context("spawn").Process(target=read, args=(url, name, options))
        process.start()
        process.join()
        assert process.exitcode == 0
        return
    store._lock.acquire()  # as if a thread had it in the moment of the fork
    child = os.fork()
    if not child:
        code = 1
        try:
            print(len(store.get(name, max_bytes=1000)), type(store._client).__name__, flush=True)
            thread = threading.Thread(target=read, args=(url, name, options))
            thread.start()
            thread.join()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


if __name__ == "__main__":
    main()
