"""`python -m kawara` is the command `kawara`."""

import sys

from kawara.cli import main

sys.exit(main())
