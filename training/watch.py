"""What is looked at while a run goes on: its groups in the same pictures, and a probe where there are labels."""

from typing import Any

from slotcon_hub.export import backbone_model
from training.evaluation.features import Labeled, extract
from training.evaluation.knn import knn
from training.run import Run

__all__ = ["Watch"]

NEIGHBOURS = 20
PROBED = 100_000  # pictures of a part: more take too long between epochs, and too much memory beside a training


class Watch:
    """Draws and probes the teacher every few epochs; nothing of the run depends on it."""

    def __init__(self, run: Run) -> None:
        """Open the labelled pictures, if the recipe names some.

        Raises:
            ValueError: they cannot be opened, or are too many.
        """
        self.run = run
        probe = run.recipe.probe
        with run.accelerator.main_process_first():
            self.parts = [Labeled(probe, split) for split in ("train", "validation")] if probe else []
        if (most := max(map(len, self.parts), default=0)) > PROBED:
            raise ValueError(
                f"--probe {probe} has {most:,} pictures in a split, and all are looked at every few epochs: give "
                f"a selection of at most {PROBED:,}, and the whole to training.evaluation.knn when the run is done"
            )

    def due(self, step: int) -> bool:
        """Whether this step ends an epoch that is looked at."""
        every = self.run.recipe.show_every * self.run.steps_per_epoch
        return every > 0 and step % every == 0

    def look(self, step: int) -> dict[str, float]:
        """Draw the groups into ``slots/`` of the run's folder, and measure; all processes together.

        Returns:
            What was measured: ``knn``, accuracy in [0, 1] of 20 neighbours, where there are labels.
        """
        run = self.run
        if run.accelerator.is_main_process:
            folder = run.folder / "slots"
            folder.mkdir(exist_ok=True)
            epoch = step // run.steps_per_epoch
            run.showcase.draw(run.slotcon, None, folder / f"epoch-{epoch:04d}.png")
        return {"knn": self._knn()} if self.parts else {}

    def _knn(self) -> float:
        run = self.run
        model: Any = backbone_model(run.slotcon).to(run.accelerator.device)
        side = run.recipe.view_size
        model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, side, side), "crop_pct": 0.875}
        features = [extract(model, part, run.accelerator, workers=run.recipe.workers) for part in self.parts]
        return knn(*features, run.accelerator, ks=(NEIGHBOURS,))[NEIGHBOURS]
