"""`python -m kawara` is the command `kawara`."""

import sys

from .cli import main

sys.exit(main())
