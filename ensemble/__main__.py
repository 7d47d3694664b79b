"""`python -m ensemble` runs the `thera` command."""

import sys

from thera.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
