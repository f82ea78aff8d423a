"""``python -m training.report RUN``: the command of `training/tools/report.py`."""

from training.tools.report import main

if __name__ == "__main__":
    main()
