"""`python -m fastdiff` is the command `fastdiff`."""

from __future__ import annotations

import sys

from fastdiff.cli import main

if __name__ == "__main__":
    sys.exit(main())
