"""``python -m training.benchmark <subject> [options]``: each subject prints one table."""

from typing import Any

import tyro

from training.tools.benchmark import busy, data, detection, evaluation, explore, listing, segmentation, step

SUBJECTS: dict[str, Any] = {
    "data": data.benchmark,
    "listing": listing.benchmark,
    "step": step.benchmark,
    "busy": busy.benchmark,
    "detection": detection.benchmark,
    "segmentation": segmentation.benchmark,
    "evaluation": evaluation.benchmark,
    "explore": explore.benchmark,
}


def main(argv: list[str] | None = None) -> None:
    """Run a benchmark; user errors end in one sentence."""
    try:
        tyro.extras.subcommand_cli_from_dict(SUBJECTS, args=argv, prog="python -m training.benchmark")
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
