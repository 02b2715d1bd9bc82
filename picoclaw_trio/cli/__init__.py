"""The command line ``picoclaw``: arguments to one call, and exit codes.

Theory: 0 is fine, 1 a failure that was told on standard error, 2 wrong usage. Standard output holds what was asked for
and nothing else. Heavy rooms are imported by the command that needs them, so that ``picoclaw version`` is quick.
Editing rule: nothing but this package, ``terminal`` and ``onboard`` prints.
"""

from .commands import main

__all__ = ["main"]
