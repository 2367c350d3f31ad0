"""``python -m aet_tilt``: the command ``aet-tilt``."""

import sys

from aet_tilt.cli import main

if __name__ == "__main__":
    sys.exit(main())
