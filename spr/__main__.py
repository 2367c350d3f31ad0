"""``python -m spr`` and ``torchrun -m spr``: the command ``spr``."""

import sys

from spr.cli import main

if __name__ == "__main__":
    sys.exit(main())
