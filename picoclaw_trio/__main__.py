"""``python -m picoclaw_trio``: the command line."""

from .cli import main

if __name__ == "__main__":
    main()
