"""Mask R-CNN against Detectron2's own numbers, in float64."""

import importlib.util
import json
from pathlib import Path

import detectron2_golden
import pytest
import torch
from shared_data import shared_data

from training.transfer.mask_rcnn.config import MaskRCNNConfig
from training.transfer.mask_rcnn.model import MaskRCNN
from training.transfer.mask_rcnn.names import config_of, from_detectron2, to_detectron2


@pytest.fixture
def golden():
    spec = importlib.util.spec_from_file_location("golden", Path(__file__).with_name("golden.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_losses_gradients_proposals_and_detections_are_those_of_detectron2(golden):
    differences = golden.detectron2(shared_data("detectron2_golden.json"))
    assert len(differences) == 16
    exact = {"num_tensors", "train.padded", "eval.count", "eval.classes", "eval.mask_pixels", "resize.rows"}
    assert all(differences[group] == 0 for group in exact)
    assert {group: d for group, d in differences.items() if d > 1e-6} == {}


def test_sizes_and_pixels_of_resized_images_are_those_of_detectron2():
    expected = json.loads(shared_data("detectron2_golden.json").read_text())["expected"]["resize"]
    ours = detectron2_golden.resized(expected)
    assert all(theirs == found for _, theirs, found in detectron2_golden._leaves((), expected, ours))


def test_a_number_that_is_missing_or_wrong_differs():
    leaves = detectron2_golden._leaves((), {"a": [1.0, 2.0], "b": {"c": 3.0}}, {"a": [1.0], "b": {}})
    assert [ours for _, _, ours in leaves] == [float("inf"), float("inf")]


@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"backbone": "resnet18", "norms": False, "box_convs": 0, "box_layers": 2},  # as the zoo's Mask R-CNNs
        {"box_convs": 2, "box_layers": 2},
    ],
)
def test_weights_go_to_detectron2_and_back(kind):
    torch.manual_seed(0)
    model = MaskRCNN(MaskRCNNConfig.numbered(3, **kind))
    theirs = to_detectron2(model.state_dict(), model.config.box_convs)["model"]
    assert config_of({name: value.shape for name, value in theirs.items()}) == model.config
    frozen = {name: value for name, value in theirs.items() if not name.endswith("num_batches_tracked")}
    frozen["proposal_generator.anchor_generator.cell_anchors.0"] = theirs["backbone.bottom_up.stem.conv1.weight"]
    for weights in (theirs, {"model": frozen}):
        back = from_detectron2(weights, list(model.state_dict()), model.config.box_convs)
        model.load_state_dict(back)
        assert all(torch.equal(back[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "words"), [("del", "lacks 'roi_heads.box_head.fc1.bias'"), ("add", "holds 'x'")]
)
def test_a_checkpoint_that_does_not_fit_is_refused(change, words):
    model = MaskRCNN(MaskRCNNConfig.numbered(3, backbone="resnet18"))
    theirs = to_detectron2(model.state_dict())["model"]
    if change == "del":
        del theirs["roi_heads.box_head.fc1.bias"]
    else:
        theirs["x"] = theirs["roi_heads.box_head.fc1.bias"]
    with pytest.raises(ValueError, match=words):
        from_detectron2(theirs, list(model.state_dict()))


def test_shapes_of_something_else_are_refused():
    with pytest.raises(ValueError, match="not the tensors of a Mask R-CNN"):
        config_of({"backbone.bottom_up.res2.0.conv1.weight": [64, 64, 1, 1]})
