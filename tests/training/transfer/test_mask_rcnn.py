"""The parts of Mask R-CNN against plain loops."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from torch import nn
from torchvision.ops import Conv2dNormActivation

from training.tools.benchmark.memory import LiveBytes
from training.transfer.mask_rcnn import boxes, masks
from training.transfer.mask_rcnn.config import MaskRCNNConfig
from training.transfer.mask_rcnn.model import MaskRCNN
from training.transfer.mask_rcnn.roi_heads import Detections
from training.transfer.mask_rcnn.target import Target
from training.transfer.recompute import run_recomputing_norms


def some_boxes(number, size, rng):
    corners = rng.uniform(0, size, (number, 2, 2))
    return torch.tensor(np.concatenate([corners.min(1), corners.max(1) + 0.5], 1), dtype=torch.float32)


def test_masks_are_pasted_as_pixel_centres_see_them():
    rng = np.random.default_rng(0)
    answers = torch.tensor(rng.random((6, 4, 4)))
    where = some_boxes(6, 20, rng)
    where[5] = torch.tensor([-3.0, -2.0, 30.0, 25.0])  # beyond the image
    found = masks.paste(answers, where, (18, 23))
    for answer, box, mask in zip(answers, where, found, strict=True):
        left, top, right, bottom = box.tolist()
        padded = np.pad(answer.numpy(), 1)  # zero beyond its border
        for y in range(18):
            for x in range(23):
                v, u = ((y + 0.5 - top) / (bottom - top) * 4 + 0.5, (x + 0.5 - left) / (right - left) * 4 + 0.5)
                if not (0 <= v < 5 and 0 <= u < 5):
                    assert not mask[y, x]
                    continue
                i, j, a, b = int(v), int(u), v % 1, u % 1
                value = (1 - a) * ((1 - b) * padded[i, j] + b * padded[i, j + 1])
                value += a * ((1 - b) * padded[i + 1, j] + b * padded[i + 1, j + 1])
                if abs(value - 0.5) > 1e-5:
                    assert mask[y, x] == (value > 0.5)


def test_polygons_are_drawn_in_their_boxes_by_cocos_rule():
    rng = np.random.default_rng(1)
    polygons = [[rng.uniform(0, 40, 8), rng.uniform(0, 40, 6)] for _ in range(5)]
    where = some_boxes(5, 40, rng)
    before = [[p.copy() for p in one] for one in polygons]
    for grid, one, box in zip(masks.crop(polygons, where, 28), polygons, where.tolist(), strict=True):
        scale = 28 / max(box[2] - box[0], 0.1), 28 / max(box[3] - box[1], 0.1)
        moved = [((p.reshape(-1, 2) - box[:2]) * scale).ravel().tolist() for p in one]
        truth = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(moved, 28, 28)))
        assert (grid.numpy() != truth).mean() < 0.01  # the box is float32 there
    assert all(
        np.array_equal(a, b)
        for one, was in zip(polygons, before, strict=True)
        for a, b in zip(one, was, strict=True)
    )


def test_bitmaps_are_averaged_over_cells():
    bitmap = np.zeros((32, 32), np.uint8)
    bitmap[8:24, 4:20] = 1
    (grid,) = masks.crop([bitmap], torch.tensor([[0.0, 0.0, 32.0, 32.0]]), 16)
    assert np.array_equal(grid.numpy(), bitmap[::2, ::2].astype(bool))


@pytest.mark.parametrize("low_quality", [False, True])
def test_boxes_match_the_object_that_they_overlap_most(low_quality):
    rng = np.random.default_rng(2)
    objects, others = some_boxes(3, 30, rng), some_boxes(80, 30, rng)
    matched, labels = boxes.match(objects, others, 0.2, 0.4, low_quality)

    def overlap(a, b):
        sides = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
        areas = [np.prod(one[2:] - one[:2]) for one in (a, b)]
        return sides.prod() / (sum(areas) - sides.prod())

    table = np.array([[overlap(o, b) for b in others.numpy()] for o in objects.numpy()])
    for n in range(80):
        best = table[:, n].max()
        forced = low_quality and (np.abs(table[:, n] - table.max(1)) < 1e-7).any()
        label = 1 if best >= 0.4 or forced else 0 if best < 0.2 else -1
        assert labels[n] == label
        if label == 1:
            assert matched[n] == table[:, n].argmax()
    assert set(labels.tolist()) == {-1, 0, 1}


def test_objects_come_first_and_fill_no_more_than_their_share():
    labels = torch.tensor([0] * 10 + [1] * 10 + [-1] * 5)
    chosen = boxes.sample(labels, 8, 0.25)
    assert labels[chosen].tolist() == [1] * 2 + [0] * 6
    assert len(set(chosen.tolist())) == 8
    assert labels[boxes.sample(labels[:11], 8, 0.5)].tolist() == [1] + [0] * 7
    assert len(boxes.sample(labels[-6:], 8, 0.5)) == 1
    draws = {tuple(boxes.sample(labels, 8, 0.25).tolist()) for _ in range(5)}
    assert len(draws) > 1


@pytest.fixture
def detector():
    torch.manual_seed(0)
    config = MaskRCNNConfig.numbered(3, backbone="slotcon_nano", channels=16, proposals=30, regions=16)
    return MaskRCNN(config)


def target(*objects):
    where = np.array([box for _, box in objects], dtype=np.float32).reshape(-1, 4)
    polygons = [[np.array([a, b, c, b, c, d, a, d])] for _, (a, b, c, d) in objects]
    return Target(where, np.array([label for label, _ in objects], dtype=np.int64), polygons)


def test_images_without_objects_train_and_reach_every_parameter(detector):
    """Their masks have no loss, but the norms see something, and other processes do not wait in vain."""
    images = [torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)]
    losses = detector(images, [target()])
    assert losses["loss_mask"] == losses["loss_box_reg"] == losses["loss_rpn_loc"] == 0
    assert losses["loss_cls"] > 0
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())
    state = detector.state_dict()
    assert all(value.isfinite().all() for value in state.values())
    assert all(v == 1 for name, v in state.items() if name.endswith("num_batches_tracked"))


def test_padding_belongs_to_no_image(detector):
    """An image is detected in alike, alone or beside a larger one."""
    detector.config = detector.roi_heads.config = MaskRCNNConfig.numbered(3, score_threshold=0.2, channels=16)
    small, large = (torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in ((64, 64), (96, 128)))
    batch, sizes = detector.batch([small, large])
    assert batch.shape == (2, 3, 96, 128)
    assert sizes == [(64, 64), (96, 128)]
    assert (batch[0, :, 64:] == 0).all()
    assert (batch[0, :, :, 64:] == 0).all()
    for found, (height, width) in zip(detector.eval()([small, large]), sizes, strict=True):
        assert (found.boxes >= 0).all()
        assert (found.boxes[:, 2] <= width).all()
        assert (found.boxes[:, 3] <= height).all()


def test_detections_are_put_into_an_image_of_another_size():
    found = Detections(
        torch.tensor([[10.0, 10, 50, 40], [0, 0, 0.5, 5]]), torch.ones(2), torch.zeros(2), torch.ones(2, 28, 28)
    )
    scaled = found.rescale((50, 100), (100, 50))
    assert scaled.boxes.tolist() == [[5, 20, 25, 80], [0, 0, 0.25, 10]]
    assert len(found.rescale((50, 100), (100, 0)).boxes) == 0


@pytest.mark.parametrize(
    ("backbone", "words"),
    [
        ("vit_tiny_patch16_224", "have strides"),
        ("resnet50d_", "no weights"),
        ("levit_128s", "could not be loaded as a backbone"),
    ],
)
def test_a_backbone_without_the_maps_is_refused(backbone, words):
    with pytest.raises(ValueError, match=words):
        MaskRCNN(MaskRCNNConfig.numbered(3, backbone=backbone))


def test_a_configuration_names_what_is_wrong():
    with pytest.raises(ValueError, match="needs classes"):
        MaskRCNNConfig()
    with pytest.raises(ValueError, match="as many different category_ids"):
        MaskRCNNConfig(classes=("a", "b"), category_ids=(1, 1))


def test_norms_that_are_computed_again_give_the_same_numbers_and_keep_less():
    """Loss, gradients and statistics, bit for bit."""
    torch.manual_seed(0)
    head = nn.Sequential(*(Conv2dNormActivation(8, 8) for _ in range(3)), nn.Flatten(), nn.Linear(8 * 49, 5))
    twin, x = copy.deepcopy(head), torch.randn(6, 8, 7, 7)
    peaks = []
    for one, run in ((head, head), (twin, lambda x: run_recomputing_norms(twin, x))):
        with LiveBytes(one, x) as tensors:
            run(x).square().mean().backward()
        peaks.append(tensors.peak)
    assert peaks[1] < peaks[0]
    for (name, p), q in zip(head.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), name
    assert all(torch.equal(*pair) for pair in zip(head.buffers(), twin.buffers(), strict=True))
    assert torch.equal(head.eval()(x), run_recomputing_norms(twin.eval(), x))


@torch.no_grad()
def test_strides_move_to_the_first_convolution_of_bottlenecks():
    config = MaskRCNNConfig(backbone="resnet26", classes=("one",), channels=8, stride_in_1x1=True)
    body = MaskRCNN(config).eval().backbone.body
    x = torch.randn(1, 64, 8, 8)
    for stage, stride in (body.layer1, 1), (body.layer2, 2):
        block = stage[0]
        y = F.conv2d(x, block.conv1.weight, stride=stride)
        y = F.conv2d(block.bn1(y).relu(), block.conv2.weight, padding=1)
        y = F.conv2d(block.bn2(y).relu(), block.conv3.weight)
        torch.testing.assert_close(block(x), (block.bn3(y) + block.downsample(x)).relu())
        x = stage(x)
