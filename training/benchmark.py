"""``python -m training.benchmark <subject>``: the command of `training/tools/benchmark`."""

from training.tools.benchmark.__main__ import main

if __name__ == "__main__":
    main()
