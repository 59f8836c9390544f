"""Python imports this by itself where it finds it: whoever prints then waits, a step every 0.6 s, say."""
import builtins
import time
from typing import Any

say = builtins.print


def print_and_wait(*values: Any, **options: Any) -> None:
    """Print, then sleep."""
    say(*values, **options)
    time.sleep(0.6)


builtins.print = print_and_wait
