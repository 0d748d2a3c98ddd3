"""`tusd-py` as the tests run it: a blocking call in the event loop is an error."""

import sys

from blockbuster import BlockBuster

from tusd_py.cli import main


def watch() -> BlockBuster:
    """Blocking calls of tusd_py in an event loop raise. The one exception is explained in tusd_py/state/sqlite.py."""
    blockbuster = BlockBuster("tusd_py")
    for name, function in blockbuster.functions.items():
        if name.startswith("sqlite3."):
            function.can_block_in("tusd_py/state/sqlite.py", "_read_inline")
    blockbuster.activate()
    return blockbuster


if __name__ == "__main__":
    watch()
    sys.exit(main())
