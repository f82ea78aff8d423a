"""SlotCon: joint learning of a backbone and semantic prototypes (Wen et al., NeurIPS 2022, arXiv 2205.15288).

Dimensions: B images on this process, K prototypes, D embedding channels, H x W cells, S pixels a view's side.
"""

import copy
import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from slotcon_hub import distributed
from slotcon_hub import functional as SF
from slotcon_hub.models.backbone import check_trainable, create_backbone
from slotcon_hub.models.layers import Dense, PrototypeNetwork, SlotPredictor
from slotcon_hub.objective.image_loss import ImageLoss
from slotcon_hub.objective.slot_loss import SlotLoss, slot_loss
from slotcon_hub.settings import check_numbers

__all__ = ["SlotCon", "SlotConConfig", "SlotConOutput", "Targets"]

Pair = tuple[Tensor, Tensor]
Align = Literal["assignments", "projections"]


@dataclass(frozen=True)
class SlotConConfig:
    """Settings of the objective; the defaults are those of the COCO recipe.

    Raises:
        ValueError: a value is out of range.
    """

    num_prototypes: int = 256
    """K, about the expected number of semantic categories in the data; at least 2."""
    hidden_dim: int = 4096
    """Channels of the hidden layers of projector and predictor."""
    out_dim: int = 256
    """D, channels of projections, slots and prototypes."""
    student_temp: float = 0.1
    """Temperature of the student's grouping prediction."""
    teacher_temp: float = 0.07
    """Temperature of the teacher's grouping target, and of the soft assignments that form the slots."""
    contrast_temp: float = 0.2
    """Temperature of the contrastive slot loss."""
    group_loss_weight: float = 0.5
    """Weight of the grouping loss; the slot loss has one minus it."""
    teacher_momentum: float = 0.99
    """EMA momentum of the teacher at the first step; it rises to 1 on a cosine."""
    center_momentum: float = 0.9
    """EMA momentum of the centre of the teacher's scores."""
    slot_loss: SlotLoss = "contrastive"
    """Contrast each slot with all others, or regress it to the teacher's slot (ablation)."""
    align: Align = "assignments"
    """What is aligned to the overlap of the views: the scores, or the projections, so that slots come from the
    overlap only (ablation)."""
    image_loss_weight: float = 0.0
    """Weight of an additional contrastive loss between whole images (ablation); 0 leaves it out. The paper states
    no value; 1 is MoCo v3's loss unchanged."""

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.num_prototypes < 2:
            raise ValueError(f"num_prototypes={self.num_prototypes} cannot group anything: use at least 2")
        for name in ("hidden_dim", "out_dim", "student_temp", "teacher_temp", "contrast_temp"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")
        for name in ("group_loss_weight", "teacher_momentum", "center_momentum"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must be between 0 and 1")
        if not self.image_loss_weight >= 0:
            raise ValueError(f"image_loss_weight={self.image_loss_weight} must not be negative")
        for name, choices in (("slot_loss", get_args(SlotLoss)), ("align", get_args(Align))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} must be one of {', '.join(choices)}")


@dataclass
class SlotConOutput:
    """Losses of a step, and statistics of its health (supplementary D). All are tensors.

    The outputs of the two directions sum to the output of the pair.
    """

    loss: Tensor
    """Scalar: ``group_loss_weight * group_loss + (1 - group_loss_weight) * slot_loss``, and
    ``image_loss_weight * image_loss`` where there is one."""
    group_loss: Tensor
    """Scalar: pixel-level deep clustering, sum of both directions."""
    slot_loss: Tensor
    """Scalar: group-level contrast or regression, sum of both directions."""
    image_loss: Tensor | None
    """Scalar: contrastive loss between whole images, sum of both directions; None if its weight is 0."""
    active_slots: Tensor
    """Scalar: teacher slots active in a view, mean over images and views of this process."""
    positive_pairs: Tensor
    """Scalar: slots active in both views of an image, mean over images and directions of this process."""
    excluded_terms: Tensor
    """Scalar: K - positive_pairs, the terms of an image that the slot loss leaves out."""
    usage: Tensor
    """K integers: teacher views of this process in which each slot is active."""

    def __add__(self, other: "SlotConOutput") -> "SlotConOutput":
        sums: dict[str, Any] = {}
        for name, mine in vars(self).items():
            sums[name] = None if mine is None else mine + getattr(other, name)
        return SlotConOutput(**sums)


class Targets(NamedTuple):
    """The teacher's outputs for both views of a batch: the targets of the student."""

    slots: Pair
    """Two of B x K x D."""
    aligned: Pair
    """Two of B x K x H x W raw scores of the overlap of the views."""
    active: Tensor
    """2 x B x K booleans."""
    center: Tensor
    """1 x K, the centre before this batch updates it."""
    image_keys: Pair | None
    """Vectors of all images of the global batch for the image loss, if there is one."""


class _Grouped(NamedTuple):
    """A view after grouping."""

    slots: Tensor
    """B x K x D."""
    scores: Tensor
    """B x K x H x W raw scores of the cells that form the slots."""
    aligned: Tensor
    """B x K x H x W raw scores of the overlap of the views."""


class SlotCon(nn.Module):
    """Student, teacher and slot predictor; the forward computes the losses of a batch of view pairs."""

    center: Tensor

    def __init__(self, backbone: nn.Module | str, config: SlotConConfig | None = None) -> None:
        """Build the student with a backbone, and the teacher as its copy.

        Args:
            backbone: a module that maps B x 3 x S x S to B x C x H x W, or a timm model without its head with such
                a map before its pooling, as from :func:`slotcon_hub.models.backbone.create_backbone`; or the name
                of a timm model.
            config: of the objective.

        Raises:
            ValueError: there is no such timm model, or the backbone has no feature map that depends on all its
                parameters.
        """
        super().__init__()
        self.config = config = config or SlotConConfig()
        if isinstance(backbone, str):
            backbone = create_backbone(backbone)
        dims = config.hidden_dim, config.out_dim
        self.student = PrototypeNetwork(backbone, config.num_prototypes, *dims)
        check_trainable(backbone, self.student.returns_map)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.predictor = SlotPredictor(config.out_dim, config.hidden_dim)
        self.register_buffer("center", torch.zeros(1, config.num_prototypes))
        self.image_loss = ImageLoss(self.student.channels, *dims) if config.image_loss_weight else None

    def forward(
        self,
        views: Pair,
        boxes: Pair,
        flips: Pair,
        *,
        targets: Targets | None = None,
        directions: Sequence[int] = (0, 1),
    ) -> SlotConOutput:
        """Compute the losses; in train mode also update the centre, and BatchNorm's running statistics.

        Each term depends on one view of the student only. So a step can compute one direction at a time, each with
        its own backward: the gradients are the same, with the activations of one view in memory instead of two.

        Args:
            views: two of B x 3 x S x S, normalised images.
            boxes: two of B x 4, the overlap of the views, ``(x1, y1, x2, y2)`` in the unit square of each view,
                after its flip.
            flips: two of B booleans, true where the view was mirrored.
            targets: of :meth:`teach` for this batch; by default it is called.
            directions: student views to compute, each against the teacher's other view.
        """
        if targets is None:
            targets = self.teach(views, boxes, flips)
        outputs = [self._learn(views[a], boxes[a], flips[a], targets, a) for a in directions]
        return functools.reduce(operator.add, outputs)

    @torch.no_grad()
    def teach(self, views: Pair, boxes: Pair, flips: Pair) -> Targets:
        """Run the teacher on both views; in train mode, update the centre and the teacher's BatchNorm statistics.

        Called outside :meth:`forward`, it must run in the same autocast context.

        Args:
            views: as in :meth:`forward`.
            boxes: likewise.
            flips: likewise.
        """
        dense = [self.teacher(view) for view in views]
        with torch.autocast(views[0].device.type, enabled=False):
            t1, t2 = (self._group(self.teacher, *view) for view in zip(dense, boxes, flips, strict=True))
            center = self.center.clone()
            if self.training:
                self._update_center(dense)
            active = torch.stack([SF.active_slots(view.scores) for view in (t1, t2)])
        keys = None
        if self.image_loss is not None:
            keys = self.image_loss.keys(dense[0].features), self.image_loss.keys(dense[1].features)
        return Targets((t1.slots, t2.slots), (t1.aligned, t2.aligned), active, center, keys)

    def _learn(self, view: Tensor, box: Tensor, flip: Tensor, targets: Targets, a: int) -> SlotConOutput:
        """Compare the student's view a with the teacher's other view, b."""
        config, b = self.config, 1 - a
        dense = self.student(view)
        with torch.autocast(view.device.type, enabled=False):
            student = self._group(self.student, dense, box, flip)
            temps = {"student_temp": config.student_temp, "teacher_temp": config.teacher_temp}
            group = SF.grouping_loss(student.aligned, targets.aligned[b], targets.center, **temps)
            keys = targets.active[b]
            queries = SF.active_slots(student.scores) & keys
        slot = slot_loss(
            self.predictor, student.slots, targets.slots[b], queries, keys, config.slot_loss, config.contrast_temp
        )
        loss = config.group_loss_weight * group + (1 - config.group_loss_weight) * slot
        image = None
        if self.image_loss is not None and targets.image_keys is not None:
            image = self.image_loss(dense.features, targets.image_keys[b])
            loss = loss + config.image_loss_weight * image
        pairs = queries.sum(-1, dtype=loss.dtype).mean() / 2
        return SlotConOutput(
            loss=loss,
            group_loss=group.detach(),
            slot_loss=slot.detach(),
            image_loss=None if image is None else image.detach(),
            active_slots=keys.sum(-1, dtype=loss.dtype).mean() / 2,
            positive_pairs=pairs,
            excluded_terms=config.num_prototypes / 2 - pairs,
            usage=keys.sum(dim=0),
        )

    def _group(self, network: PrototypeNetwork, view: Dense, box: Tensor, flip: Tensor) -> _Grouped:
        """Group a view's cells into slots, and align its scores with the other view."""
        z, scores = view.z, view.scores
        if self.config.align == "projections":
            z = SF.align(z, box, flip)
            scores = aligned = network.prototypes(z)
        else:
            aligned = SF.align(scores, box, flip)
        slots = SF.group_slots(z, SF.assign(scores, self.config.teacher_temp))
        return _Grouped(slots, scores, aligned)

    @torch.no_grad()
    def _update_center(self, teachers: list[Dense]) -> None:
        """Update the centre by the mean of the teacher's raw scores over cells, views and processes.

        The scores are those of whole views, not of their overlap: a mean over the data, not over pairs of views.
        """
        batch = torch.stack([view.scores.mean(dim=(0, 2, 3)) for view in teachers]).mean(dim=0)
        self.center.lerp_(distributed.mean(batch)[None], 1 - self.config.center_momentum)

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """Move the teacher's parameters towards the student's: ``teacher <- m teacher + (1 - m) student``.

        Once per optimisation step, before the forward. Buffers are not averaged: the teacher's BatchNorm statistics
        come from its own forwards. Nothing is updated in eval mode.

        Args:
            momentum: m in [0, 1]; see :func:`slotcon_hub.functional.teacher_momentum`.
        """
        if not self.training:
            return
        teacher: list[Tensor] = list(self.teacher.parameters())
        student: list[Tensor] = list(self.student.parameters())
        if self.image_loss is not None:
            teacher += self.image_loss.teacher.parameters()
            student += self.image_loss.student.parameters()
        torch._foreach_lerp_(teacher, student, 1 - momentum)
