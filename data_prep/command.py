"""What the programs of this package share: how they fail."""
import sys
from collections.abc import Callable


def run(program: Callable[[], None]) -> None:
    """Run a program; what a user can get wrong becomes one line on stderr and exit status 1."""
    try:
        program()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
