"""Scripts that start again in each process that loads images, which would train, too.

A process that is started by "spawn" or "forkserver" imports the script that started it. Importing this module
imports no PyTorch, so that such a process ends soon.
"""

import multiprocessing
import os
import sys

IMPORTED_AGAIN = 83
"""Exit code of such a process."""


def require_one_start() -> None:
    """End this process, without a word, if it still imports the script; the one that started it tells the reason."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        os._exit(IMPORTED_AGAIN)


def starts_unguarded() -> bool:
    """Return True if processes import the script, and it calls us without a look at `__name__`."""
    if multiprocessing.get_start_method() == "fork":
        return False
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") == "__main__":
            return "__name__" not in frame.f_code.co_names
    return False


def restarted_script() -> str:
    """Write the error of the process that started them."""
    method = multiprocessing.get_start_method()
    script = getattr(sys.modules["__main__"], "__file__", None) or "this program"
    return (
        f"{script}: starts again in each process that loads images (start method {method}); "
        'put what it does under `if __name__ == "__main__":`, or give workers=0'
    )
