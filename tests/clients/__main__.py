"""``python -m clients``; see the package."""

from __future__ import annotations

import sys

from clients.runner import main

sys.exit(main())
