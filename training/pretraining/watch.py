"""Evaluation between epochs: drawings of the groups, and a probe if there are labels."""

import functools
from typing import Any

import torch
from torch import Tensor, nn

from slotcon_hub.export.teacher import backbone_model
from slotcon_hub.models.saving import pretraining_preprocessing
from training.data.images import are_too_many
from training.engine.errors import first_line
from training.evaluation.features import Features, Labeled, extract, open_parts
from training.evaluation.knn import knn
from training.pretraining.prepare import Pretraining

__all__ = ["Watch"]

NEIGHBOURS = 20
PROBED = 100_000  # images per split: more take too much time and memory during a training


class Watch:
    """Evaluates the teacher every few epochs, without effect on the training."""

    def __init__(self, job: Pretraining) -> None:
        """Open the labelled images of the recipe's ``probe``, if set.

        Raises:
            ValueError: they cannot be opened or are too many, or the classes of the two splits differ.
        """
        self.job, self.run, self.recipe = job, job.run, job.recipe
        probe, columns = self.recipe.probe, (self.recipe.image_column, self.recipe.label_column)
        kind = functools.partial(_Probed, side=self.recipe.view_size)
        with self.run.accelerator.main_process_first():
            self.parts = open_parts(probe, "train", "validation", *columns, kind) if probe else ()
        if (most := max(map(len, self.parts), default=0)) > PROBED:
            raise ValueError(
                f"--probe {probe} has {most:,} images in a split, too many to evaluate every few epochs: give "
                f"a selection of at most {PROBED:,}, and use training.evaluation.knn on all of them after the run"
            )

    def due(self, step: int) -> bool:
        """Whether this step ends an epoch after which the teacher is evaluated."""
        every = self.recipe.show_every * self.job.steps_per_epoch
        return every > 0 and step % every == 0

    def evaluate(self) -> dict[str, float]:
        """Draw the groups into ``slots/`` of the run's folder, and run the probe; a collective call.

        A failure is a warning only.

        Returns:
            ``knn``, the accuracy in [0, 1] of 20 nearest neighbours, if there are labels.
        """
        problem = self._draw() if self.run.is_main else None
        self.run.warn("drawing", problem is not None, f"the groups could not be drawn: {problem}")
        if not self.parts:
            return {}
        accuracy, problem = self._knn()
        self.run.warn("probe", problem is not None, f"the probe failed: {problem}")
        return {} if accuracy is None else {"knn": accuracy}

    def _draw(self) -> str | None:
        """Draw, and return the error, if any."""
        target = self.run.folder / "slots" / f"epoch-{self.run.step // self.job.steps_per_epoch:04d}.png"
        try:
            target.parent.mkdir(exist_ok=True)
            self.job.showcase.draw(self.job.slotcon, None, target)
        except Exception as error:  # such as a full disk or GPU
            return first_line(error)
        return None

    def _knn(self) -> tuple[float | None, str | None]:
        """Measure, and return the accuracy or the error."""
        accelerator, workers = self.run.accelerator, self.recipe.workers
        try:
            model = _NanOnFailure(backbone_model(self.job.slotcon).to(accelerator.device), self.recipe.view_size)
            features = [extract(model, part, accelerator, workers=workers) for part in self.parts]
            for part, found in zip(self.parts, features, strict=True):
                if problem := _missing_features(part, found):  # equal on all processes
                    return None, model.problem or problem
            bank, queries = (found.select(found.finite()) for found in features)
            return knn(bank, queries, accelerator, ks=(NEIGHBOURS,))[NEIGHBOURS], None
        except Exception as error:
            if accelerator.num_processes > 1:
                raise  # other processes wait in a collective
            return None, first_line(error)


class _Probed(Labeled):
    """Labelled images; an unreadable one is NaN, so that all processes see it in its features."""

    def __init__(self, *where: str, side: int) -> None:
        super().__init__(*where)
        self.side = side

    def __getitem__(self, index: int) -> tuple[int, Any]:
        try:
            return super().__getitem__(index)
        except (ValueError, OSError):
            return index, torch.full((3, self.side, self.side), torch.nan)


class _NanOnFailure(nn.Module):
    """A backbone that returns NaN features if it fails, so that no process waits for a failed one."""

    def __init__(self, model: Any, side: int) -> None:
        super().__init__()
        self.model, self.head_hidden_size = model, model.head_hidden_size
        self.pretrained_cfg = {**model.pretrained_cfg, **pretraining_preprocessing(side)}
        self.problem: str | None = None

    def forward(self, images: Tensor) -> Tensor:
        try:
            return self.model(images)
        except RuntimeError as error:  # such as out of memory
            self.problem = first_line(error)
            return images.new_full((len(images), self.head_hidden_size), torch.nan)


def _missing_features(part: Labeled, found: Features) -> str | None:
    """Return an error if too many images have no features; equal on all processes."""
    none = (~found.finite()).nonzero().flatten().tolist()
    if not are_too_many(len(none), len(part)):
        return None
    first = part.images.name(none[0])
    reasons = "it cannot be read, or there was no memory for it"
    return f"{len(none)} of {len(part)} images have no features, the first of them {first}: {reasons}"
