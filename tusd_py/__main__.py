"""The command line, as `python -m tusd_py`."""

import sys

from tusd_py.cli import main

if __name__ == "__main__":
    sys.exit(main())
