"""Testing whole images and windows, against slow versions; counts of one and of several processes."""

import math

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image
from torch import nn

from training.data.masks import LabeledImages
from training.evaluation.segmentation_report import Example
from training.transfer.semantic.evaluation import Predictor, count, windows
from training.transfer.semantic.model import FCN, Head, Output
from training.transfer.semantic.report import draw_grid, measure, print_tables

CFG = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
CLASSES = 5


class Scores(nn.Module):
    """A network of one strided convolution in the place of a backbone and heads."""

    upsample = FCN.upsample

    def __init__(self, classes=CLASSES, stride=4, align_corners=True):
        super().__init__()
        torch.manual_seed(0)
        self.classifier = nn.Conv2d(3, classes, 5, stride, 2)
        self.classes, self.align_corners, self.seen = classes, align_corners, []

    def forward(self, x):
        self.seen.append(tuple(x.shape[2:]))
        return Output(self.classifier(x), None)


def standardized(image):
    return ((image.float() / 255 - 0.5) / 0.25)[None]


def draw(height, width, seed=0):
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed)).byte()


@pytest.mark.parametrize("align_corners", [True, False])
def test_a_whole_image_keeps_its_size(align_corners):
    net, image = Scores(align_corners=align_corners), draw(37, 50)
    x = standardized(image)
    scores = F.interpolate(net.classifier(x), (37, 50), mode="bilinear", align_corners=align_corners)
    assert torch.equal(Predictor(net, CFG)(image), scores.argmax(1)[0])


@pytest.mark.parametrize("classes", [5, 70])
def test_an_image_is_resized_and_its_scores_back(classes):
    """In two steps, as MMSegmentation: to the network's input, then to the image; classes are taken in parts."""
    net, image = Scores(classes, align_corners=False), draw(30, 50)
    resized = F.interpolate(image[None].float(), (48, 80), mode="bilinear")[0].round().byte()
    scores = F.interpolate(net.classifier(standardized(resized)), (48, 80), mode="bilinear")
    expected = F.interpolate(scores, (30, 50), mode="bilinear").argmax(1)[0]
    found = Predictor(net, CFG, scale=(200, 48))(image)
    assert net.seen == [(48, 80)]
    assert (found == expected).float().mean() > 0.999


@pytest.mark.parametrize(("height", "width"), [(40, 70), (24, 24), (24, 61), (10, 90), (9, 9)])
def test_windows_are_averaged(height, width):
    """A slow version that asks, for every pixel, each window that could hold it."""
    side, stride = 24, 16
    net, image = Scores(), draw(height, width)
    x = standardized(image)
    corners = [
        sorted(
            {max(min(k * stride, length - side), 0) for k in range(math.ceil(max(length - side, 0) / stride) + 1)}
        )
        for length in (height, width)
    ]
    total, times = torch.zeros(CLASSES, height, width), torch.zeros(height, width)
    for top in corners[0]:
        for left in corners[1]:
            part = x[:, :, top : top + side, left : left + side]
            own = F.interpolate(net.classifier(part), part.shape[2:], mode="bilinear", align_corners=True)[0]
            total[:, top : top + side, left : left + side] += own
            times[top : top + side, left : left + side] += 1
    assert times.min() == 1
    found = Predictor(net, CFG, window=side, stride=stride)(image)
    assert len(net.seen) == len(corners[0]) * len(corners[1])
    assert (found == (total / times).argmax(0)).float().mean() > 0.999


def test_an_image_of_cityscapes_takes_eight_windows():
    assert len(list(windows(1024, 2048, 769, 513))) == 8
    assert list(windows(769, 770, 769, 513))[1] == (slice(0, 769), slice(1, 770))


class Painted(Scores):
    """Tells the class of a pixel from its red: perfect on masks that were painted so."""

    def forward(self, x):
        level = ((x[:, :1] * 0.25 + 0.5) * 255 / 40).round()
        return Output(-(level - torch.arange(self.classes).view(1, -1, 1, 1)).abs(), None)


@pytest.fixture
def painted(tmp_path):
    """Images whose red is 40 times the class, of several sizes; some pixels have no label."""
    for i in range(7):
        truth = torch.randint(0, CLASSES - 1, (20 + i // 3, 30), generator=torch.Generator().manual_seed(i)).byte()
        for name, pixels in (("images", (truth * 40).expand(3, -1, -1).permute(1, 2, 0)), ("masks", truth)):
            (tmp_path / name).mkdir(exist_ok=True)
            if name == "masks":
                pixels = pixels.clone()
                pixels[:3] = 255
            Image.fromarray(pixels.numpy()).save(tmp_path / name / f"{i}.png")
    return LabeledImages(tmp_path / "images", tmp_path / "masks")


@pytest.fixture
def accelerator(monkeypatch):
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    return Accelerator(cpu=True)


def test_perfect_predictions_give_100(painted, accelerator, capsys, tmp_path):
    confusion, examples = count(Predictor(Painted(), CFG), painted, accelerator, workers=0, shown=3)
    names = [f"class {c}" for c in range(CLASSES)]
    numbers = measure(confusion, names)
    assert numbers["miou"] == numbers["pixel_accuracy"] == numbers["mean_accuracy"] == 1
    assert [one["iou"] for one in numbers["per_class"][:4]] == [1] * 4
    assert math.isnan(numbers["per_class"][4]["iou"])  # of a class that nothing shows
    assert confusion.sum() == sum(int((truth != 255).sum()) for _, truth in painted)
    print_tables(numbers)
    assert capsys.readouterr().out.count("100.00") == 3 + 2 * 4
    assert [example.number for example in examples] == [0, 3, 6]
    draw_grid(examples, names, tmp_path / "grid.png")
    assert (tmp_path / "grid.png").stat().st_size > 1000


def test_numbers_are_those_of_the_definition():
    """Against loops over pixels."""
    rng = torch.Generator().manual_seed(1)
    truth, found = (torch.randint(0, 4, (2, 9, 9), generator=rng) for _ in range(2))
    confusion = torch.zeros(4, 4, dtype=torch.long)
    for a, b in zip(found.flatten(), truth.flatten(), strict=True):
        confusion[a, b] += 1
    numbers = measure(confusion, "abcd")
    ious = [((found == c) & (truth == c)).sum() / ((found == c) | (truth == c)).sum() for c in range(4)]
    assert numbers["miou"] == pytest.approx(float(sum(ious) / 4))
    assert numbers["pixel_accuracy"] == pytest.approx(float((found == truth).float().mean()))
    recalls = [float((found[truth == c] == c).float().mean()) for c in range(4)]
    assert numbers["mean_accuracy"] == pytest.approx(sum(recalls) / 4)
    assert [one["pixels"] for one in numbers["per_class"]] == truth.flatten().bincount().tolist()


def test_a_grid_shows_unlabelled_pixels_and_all_classes(tmp_path):
    truth = torch.tensor([[0, 1], [255, 2]]).repeat_interleave(20, 0).repeat_interleave(20, 1).byte()
    image = torch.full((3, 40, 40), 128, dtype=torch.uint8)
    example = Example(0, image, truth, {"predicted": torch.zeros(40, 40, dtype=torch.uint8)})
    draw_grid([example], ["a", "b", "c"], tmp_path / "grid.png")
    assert (tmp_path / "grid.png").stat().st_size > 1000


def test_the_whole_network_predicts():
    from training.transfer.semantic.model import create_backbone

    net = FCN(create_backbone("slotcon_nano", 16, pretrained=False), 3, Head(8)).eval()
    assert Predictor(net, CFG)(draw(45, 61)).shape == (45, 61)
