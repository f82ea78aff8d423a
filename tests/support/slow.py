"""The equations of the paper, written with loops: slow, plain, and what the package is compared with.

Dimensions: B images, K prototypes, D channels, H x W cells.
"""

import math

import torch
from torch import Tensor


def cosine_scores(z: Tensor, prototypes: Tensor) -> Tensor:
    b, _, h, w = z.shape
    out = z.new_zeros(b, len(prototypes), h, w)
    for i in range(b):
        for k, s in enumerate(prototypes):
            for y in range(h):
                for x in range(w):
                    cell = z[i, :, y, x]
                    out[i, k, y, x] = (s / s.norm()) @ (cell / cell.norm())
    return out


def group_slots(z: Tensor, scores: Tensor, temperature: float) -> Tensor:
    b, d, h, w = z.shape
    k = scores.shape[1]
    slots = z.new_zeros(b, k, d)
    for i in range(b):
        for j in range(k):
            total, weighted = 0.0, z.new_zeros(d)
            for y in range(h):
                for x in range(w):
                    exps = (scores[i, :, y, x] / temperature).exp()
                    a = exps[j] / exps.sum() + 1e-6
                    total = total + a
                    weighted = weighted + a * z[i, :, y, x]
            slots[i, j] = weighted / total
    return slots


def active_slots(scores: Tensor) -> list[set[int]]:
    b, _, h, w = scores.shape
    return [{int(scores[i, :, y, x].argmax()) for y in range(h) for x in range(w)} for i in range(b)]


def grouping_loss(s: Tensor, t: Tensor, center: Tensor, student_temp: float, teacher_temp: float) -> Tensor:
    b, k, h, w = s.shape
    total = s.new_zeros(())
    for i in range(b):
        for y in range(h):
            for x in range(w):
                p = ((t[i, :, y, x] - center[0]) / teacher_temp).exp()
                p = p / p.sum()
                q = (s[i, :, y, x] / student_temp).exp()
                q = q / q.sum()
                for j in range(k):
                    total = total - p[j] * q[j].log()
    return total / (b * h * w)


def slot_loss(
    student: Tensor,
    teacher: Tensor,
    s: Tensor,
    t: Tensor,
    predictor: torch.nn.Module,
    tau: float,
    kind: str = "contrastive",
) -> Tensor:
    """One direction: student slots and scores of view a, teacher slots and scores of view b."""
    chosen, wanted = active_slots(s), active_slots(t)
    keys = [(i, k) for i in range(len(t)) for k in sorted(wanted[i])]
    queries = [(i, k) for i in range(len(s)) for k in sorted(chosen[i] & wanted[i])]
    if not queries:
        return student.sum() * 0
    predicted = predictor(torch.stack([student[i, k] for i, k in queries]))
    total = student.new_zeros(())
    for q, ik in zip(predicted, queries, strict=True):
        if kind == "regression":
            total = total + 2 - 2 * cosine(q, teacher[ik])
            continue
        exps = [math.e ** (cosine(q, teacher[key]) / tau) for key in keys]
        total = total - 2 * tau * (exps[keys.index(ik)] / sum(exps)).log()
    return total / len(queries)


def image_loss(students: list[Tensor], teachers: list[Tensor], model: torch.nn.Module, tau: float) -> Tensor:
    """Both directions: features of the student and of the teacher, two of B x C x H x W."""
    queries = [model.predictor(model.student(pooled(view))) for view in students]
    keys = [model.teacher(pooled(view)).detach() for view in teachers]
    total = students[0].new_zeros(())
    for a, b in ((0, 1), (1, 0)):
        for i, q in enumerate(queries[a]):
            exps = [math.e ** (cosine(q, key) / tau) for key in keys[b]]
            total = total - 2 * tau * (exps[i] / sum(exps)).log() / len(queries[a])
    return total


def pooled(features: Tensor) -> Tensor:
    b, _, h, w = features.shape
    cells = [[features[i, :, y, x] for y in range(h) for x in range(w)] for i in range(b)]
    return torch.stack([sum(image) / (h * w) for image in cells])


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a / a.norm()) @ (b / b.norm())


def align(scores: Tensor, boxes: Tensor, flips: Tensor) -> Tensor:
    """RoIAlign (half-pixel aligned, adaptive sampling, He et al. 2017) by loops, then the mirror."""
    b, k, h, w = scores.shape
    out = scores.new_zeros(b, k, h, w)
    for i in range(b):
        x1, y1, x2, y2 = (boxes[i] * boxes.new_tensor([w, h, w, h]) - 0.5).tolist()
        bin_h, bin_w = (y2 - y1) / h, (x2 - x1) / w
        ny, nx = max(math.ceil((y2 - y1) / h), 1), max(math.ceil((x2 - x1) / w), 1)
        for oy in range(h):
            for ox in range(w):
                points = [
                    bilinear(scores[i], y1 + (oy + (a + 0.5) / ny) * bin_h, x1 + (ox + (c + 0.5) / nx) * bin_w)
                    for a in range(ny)
                    for c in range(nx)
                ]
                out[i, :, oy, ox] = torch.stack(points).mean(0)
        if flips[i]:
            out[i] = out[i].flip(-1)
    return out


def bilinear(maps: Tensor, y: float, x: float) -> Tensor:
    _, h, w = maps.shape
    y, x = min(max(y, 0), h - 1), min(max(x, 0), w - 1)
    y0, x0 = int(y), int(x)
    y1, x1 = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
    fy, fx = y - y0, x - x0
    top = maps[:, y0, x0] * (1 - fx) + maps[:, y0, x1] * fx
    bottom = maps[:, y1, x0] * (1 - fx) + maps[:, y1, x1] * fx
    return top * (1 - fy) + bottom * fy
