"""Runs the module that the first argument names, as `python -m` does; run as a file, which Python 3.10 needs to leave
the current folder off its path.
"""

import sys

if __name__ == "__main__":
    # The folder of this file, which Python 3.10 puts first: its modules are no top-level ones.
    sys.path[:] = [entry for entry in sys.path if entry and entry != __file__.replace("\\", "/").rpartition("/")[0]]
    del sys.argv[0]
    from runpy import run_module

    run_module(sys.argv[0], run_name="__main__", alter_sys=True)
