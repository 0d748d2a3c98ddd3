"""`tusd-py` as the tests run it: a blocking call in the event loop is an error.

With PLAIN_ASGI in the environment the server runs under uvicorn's own protocol class, as under any other ASGI server.
"""

import os
import sys
from collections.abc import Sequence

from blockbuster import BlockBuster
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tests.support.timing import scaled
from tusd_py.cli import main
from tusd_py.uploads import append
from tusd_py.uvicorn_server import process


def watch() -> BlockBuster:
    """Make blocking calls of tusd_py in an event loop raise; return the object that undoes it.

    `tusd_py/backends/sqlite/state.py` explains the one exception.
    """
    blockbuster = BlockBuster("tusd_py", excluded_modules=["tusd_py.testing"])
    for name, function in blockbuster.functions.items():
        if name.startswith("sqlite3."):
            function.can_block_in("tusd_py/backends/sqlite/state.py", "_read_inline")
    blockbuster.activate()
    return blockbuster


# Scaled, since on a slow machine a client of the tests may be silent for longer without being idle.
vars(append)["MAX_SILENCE"] = scaled(append.MAX_SILENCE)

if os.environ.get("PLAIN_ASGI"):  # in worker processes too, which import this module again
    vars(process)["upload_protocol"] = lambda **_: HttpToolsProtocol
    vars(process)["WEBSOCKETS"] = "websockets-sansio"


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, by default that of this process."""
    watch()
    return main(arguments)


if __name__ == "__main__":
    sys.exit(run())
