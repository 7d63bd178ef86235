"""Entry point of ``python -m harness``; the same as ``ct-harness``."""

from harness.cli.app import main

if __name__ == "__main__":
    main()
