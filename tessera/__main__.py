"""`python -m tessera` is the command line."""

import sys

from tessera.cli import main

if __name__ == "__main__":
    sys.exit(main())
