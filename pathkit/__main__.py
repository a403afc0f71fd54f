"""``python -m pathkit`` is the command ``pathkit``."""

import sys

from pathkit.cli import main

sys.exit(main())
