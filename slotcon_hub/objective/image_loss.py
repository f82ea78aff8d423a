"""The image-level loss of the ablation, as in MoCo v3 (supplementary C, ablation d).

Dimensions: B images on this process, C backbone channels, D embedding channels, H x W cells.
"""

import copy

import torch
from torch import Tensor, nn

from slotcon_hub import distributed
from slotcon_hub import functional as SF
from slotcon_hub.models.layers import MLP, full_precision

__all__ = ["ImageLoss"]


class ImageLoss(nn.Module):
    """Contrastive loss between whole images: pooled features with their own projector and predictor.

    The paper does not specify the two heads; here they have the shape of g and q, for vectors. They are not
    exported.
    """

    def __init__(self, channels: int, hidden_dim: int, out_dim: int, temperature: float = 0.2) -> None:
        """Create the student's projector and predictor; the teacher's projector is a copy.

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

    @torch.no_grad()
    def keys(self, teacher: Tensor) -> Tensor:
        """Project the teacher's features of a view, and gather those of the global batch.

        Args:
            teacher: B x C x H x W features; B must be equal on all processes.

        Returns:
            (B x processes) x D.
        """
        return distributed.gather_rows(self._project(self.teacher, teacher), self._counts(teacher))

    def forward(self, student: Tensor, keys: Tensor) -> Tensor:
        """Loss of one direction: the positive of a student's view is the teacher's other view of the same image.

        Args:
            student: B x C x H x W, the student's features of one view.
            keys: of the teacher's other view, as :meth:`keys` returns them.

        Returns:
            A scalar: the mean over the images of this process.
        """
        queries = self.predictor(self._project(self.student, student), self._counts(student))
        own = torch.arange(len(student), device=student.device) + len(student) * distributed.rank()
        with torch.autocast(student.device.type, enabled=False):
            return SF.contrast(full_precision(queries), full_precision(keys), own, self.temperature)

    @staticmethod
    def _counts(features: Tensor) -> list[int]:
        return [len(features)] * distributed.world_size()

    @classmethod
    def _project(cls, head: MLP, features: Tensor) -> Tensor:
        return head(features.mean((2, 3)), cls._counts(features))
