"""`python -m ensemble` runs the `thera` command."""

import sys

from ensemble.cli import main

if __name__ == "__main__":
    sys.exit(main())
