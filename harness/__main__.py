"""Entry point of ``ct-harness`` and ``python -m harness``: signals are answered before anything slow is imported."""

from harness.cli import signals
from harness.util.foreign import refuse_exit


def main() -> None:
    """Run ``ct-harness``."""
    signals.answer()
    refuse_exit()
    from harness.cli.app import main

    main()


if __name__ == "__main__":
    main()
