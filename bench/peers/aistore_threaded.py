"""`aistore[etl]`'s threaded HTTP server: `python aistore_threaded.py PORT`.

It opens a connection for every request and lets five of them wait, fewer than the load has: with that number some are
lost, and there would be nothing to compare. Here as many may wait as with the other servers.
"""

from __future__ import annotations

import sys

from aistore.sdk.etl.webserver.http_multi_threaded_server import (  # type: ignore[import-not-found]
    HTTPMultiThreadedServer,
    ThreadedHTTPServer,
)
from bodies import chosen  # type: ignore[import-not-found]

if __name__ == "__main__":
    ThreadedHTTPServer.request_queue_size = 2048
    type("Bench", (chosen(), HTTPMultiThreadedServer), {})(host="127.0.0.1", port=int(sys.argv[1])).start()
