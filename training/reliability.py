"""``python -m training.reliability``: the command of `training/tools/reliability`."""

import tyro

from training.tools.reliability.__main__ import main

if __name__ == "__main__":
    tyro.cli(main, prog="python -m training.reliability")
