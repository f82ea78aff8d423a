"""The image-level loss of the ablation, in the manner of MoCo v3 (supplementary C, ablation d).

Dimensions: B images on this process, C backbone channels, D embedding channels, H x W cells.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from slotcon_hub import distributed
from slotcon_hub import functional as SF
from slotcon_hub.models.layers import MLP, full_precision

__all__ = ["ImageLoss"]


class ImageLoss(nn.Module):
    """Contrast between whole images: pooled features through a projector and predictor of their own.

    The paper leaves the shape of both heads open; here it is that of g and q, on vectors. They serve training
    alone: no export has them.
    """

    def __init__(self, channels: int, hidden_dim: int, out_dim: int, temperature: float = 0.2) -> None:
        """Make the student's projector and predictor, and the teacher's projector as a copy.

        Args:
            channels: C.
            hidden_dim: channels of the hidden layers of all heads.
            out_dim: D.
            temperature: tau, MoCo v3's 0.2 by default.
        """
        super().__init__()
        self.student = MLP(channels, hidden_dim, out_dim)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.predictor = MLP(out_dim, hidden_dim, out_dim)
        self.temperature = temperature

    def forward(self, students: Sequence[Tensor], teachers: Sequence[Tensor]) -> Tensor:
        """Loss, sum of both directions: the student's view a picks the teacher's view b of its image.

        The candidates are that view of all images of the global batch.

        Args:
            students: the student's features of both views, two of B x C x H x W, B the same on all processes.
            teachers: the teacher's; they get no gradient.

        Returns:
            A scalar: the mean over the images of this process.
        """
        images, processes = len(students[0]), distributed.world_size()
        q1, q2 = (self.predictor(self._project(self.student, f), [images] * processes) for f in students)
        with torch.no_grad():
            keys = (self._project(self.teacher, f) for f in teachers)
            k1, k2 = (distributed.gather_rows(k, [images] * processes) for k in keys)
        own = torch.arange(images, device=q1.device) + images * distributed.rank()
        with torch.autocast(q1.device.type, enabled=False):
            q1, q2, k1, k2 = (full_precision(x) for x in (q1, q2, k1, k2))
            return SF.contrast(q1, k2, own, self.temperature) + SF.contrast(q2, k1, own, self.temperature)

    @staticmethod
    def _project(head: MLP, features: Tensor) -> Tensor:
        return head(features.mean((2, 3)), [len(features)] * distributed.world_size())
