"""Our models in what people fine-tune with: timm's own tools, smp's encoders, torchvision's detectors."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config
from timm.layers import freeze_batch_norm_2d
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN

import slotcon_hub  # noqa: F401  (registers the models)
from slotcon_hub.models.importing import import_checkpoint

NAMES = ["slotcon_nano", "slotcon_nano_proto", "slotcon_r50", "slotcon_r50_proto"]
IMAGES = torch.linspace(-2, 2, 2 * 3 * 64 * 64).view(2, 3, 64, 64)


@pytest.fixture(scope="module")
def r50(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Tensor]]:
    """The weights that the local store has for ``slotcon_r50``; there is no other store, and no Hub."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("home")
    state = timm.create_model("resnet50", num_classes=0, zero_init_last=False).state_dict()
    save_file(state, folder / "backbone.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLOTCON_HUB_HOME", str(folder / "store"))
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        import_checkpoint(folder / "backbone.safetensors", "slotcon_r50.coco_800ep")
        yield state


@pytest.mark.parametrize("name", NAMES)
def test_timm_prepares_images_as_in_pre_training(name):
    model = timm.create_model(name, device="meta")
    side = 128 if "nano" in name else 224
    config = resolve_data_config({}, model=model)
    assert config == {
        "input_size": (3, side, side),
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "crop_pct": 1.0 if "nano" in name else 0.875,
        "crop_mode": "center",
    }
    features = timm.create_model(name, device="meta", features_only=True)
    assert resolve_data_config({}, model=features) == config
    assert [str(step) for step in create_transform(**config).transforms[:2]] == [
        f"Resize(size={round(side / config['crop_pct'])}, interpolation=bicubic, max_size=None, antialias=True)",
        f"CenterCrop(size=({side}, {side}))",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_layer_decay_gives_each_layer_its_rate(name):
    """From stem to head, at every step of a schedule of timm's."""
    model = timm.create_model(name, device="meta", num_classes=4)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1.0, weight_decay=0.1, layer_decay=0.5)
    schedule, _ = create_scheduler_v2(optimizer, num_epochs=8, warmup_epochs=2, warmup_lr=0.1)
    names = {id(p): name for name, p in model.named_parameters()}
    prefix, head = ("backbone.", "prototypes.") if name.endswith("_proto") else ("", "fc.")
    ordered = [f"{prefix}{layer}" for layer in ("conv1.", "layer1.", "layer2.", "layer3.", "layer4.")] + [head]
    for epoch in range(8):
        schedule.step(epoch)
        rates: dict[str, set[float]] = {layer: set() for layer in ordered}
        for group in optimizer.param_groups:
            for p in group["params"]:
                for layer in ordered:
                    if names[id(p)].startswith(layer):
                        rates[layer].add(group["lr"])
        for below, above in itertools.pairwise(ordered):
            assert 0 < max(rates[below]) < min(rates[above])
        assert max(rates[ordered[-2]]) == pytest.approx(max(rates[head]) / 2)
        assert len({max(r) for r in rates.values()}) == 6


def gradients(net: nn.Module) -> list[Tensor]:
    found = [p.grad for p in net.parameters() if p.requires_grad]
    assert all(g is not None and g.isfinite().all() for g in found)
    return [g for g in found if g is not None]


@pytest.mark.parametrize(
    ("network", "name", "kwargs"),
    [
        (smp.Unet, "slotcon_r50", {}),
        (smp.Unet, "slotcon_r18_proto", {}),
        (smp.Unet, "slotcon_r18", {"encoder_depth": 4, "decoder_channels": (32, 16, 8, 8), "in_channels": 4}),
        (smp.DeepLabV3Plus, "slotcon_r18", {"encoder_output_stride": 8}),
        (smp.FPN, "slotcon_r34", {}),
    ],
)
def test_an_encoder_of_smp(network, name, kwargs):
    net = network(f"tu-{name}", encoder_weights=None, classes=3, **kwargs)
    images = IMAGES[:, [0, 1, 2, 0]] if "in_channels" in kwargs else IMAGES
    out = net(images)
    assert out.shape == (2, 3, 64, 64)
    strides = [images.shape[2] // features.shape[2] for features in net.encoder(images)]
    stride = kwargs.get("encoder_output_stride", 32)
    assert strides == [min(2**i, stride) for i in range(kwargs.get("encoder_depth", 5) + 1)]
    out.square().mean().backward()
    assert gradients(net.encoder)[0].abs().max() > 0


def test_smp_takes_the_pretrained_weights(r50):
    net = smp.Unet("tu-slotcon_r50", encoder_weights=True, classes=3)
    assert all(torch.equal(value, r50[key]) for key, value in net.encoder.model.state_dict().items())
    prepared = smp.encoders.get_preprocessing_params("tu-slotcon_r50")
    assert (prepared["mean"], prepared["std"]) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


@pytest.mark.usefixtures("r50")
@pytest.mark.parametrize(
    ("name", "words"),
    [("slotcon_r50.in1k_200ep", "slotcon-hub import CHECKPOINT"), ("slotcon_r18", "No pretrained weights exist")],
)
def test_smp_gets_no_random_weights_for_pretrained_ones(name, words):
    with pytest.raises(RuntimeError, match=words):
        smp.Unet(f"tu-{name}", encoder_weights=True)


def test_smp_refuses_the_stride_of_nano():
    """It wants strides that double from map to map, and the last two of nano are the same."""
    with pytest.raises(ValueError, match="Unsupported model downsampling pattern"):
        smp.Unet("tu-slotcon_nano", encoder_weights=None)


def pyramid(name: str, **kwargs: Any) -> BackboneWithFPN:
    backbone = timm.create_model(name, num_classes=0, **kwargs)
    layers = {f"layer{i}": str(i) for i in range(1, 5)}
    channels = [info["num_chs"] for info in backbone.feature_info[1:]]
    return BackboneWithFPN(freeze_batch_norm_2d(backbone), layers, channels, out_channels=256)


@pytest.mark.parametrize(("detector", "name"), [(FasterRCNN, "slotcon_nano"), (MaskRCNN, "slotcon_r18")])
def test_a_detector_of_torchvision(detector, name):
    few = {"rpn_post_nms_top_n_train": 50, "rpn_post_nms_top_n_test": 20, "box_detections_per_img": 5}
    backbone = pyramid(name, zero_init_last=False)  # in a random network that is frozen, zeros would stay
    net = detector(backbone, num_classes=3, min_size=96, max_size=96, box_score_thresh=0.0, **few)
    masks = torch.zeros(1, 96, 96, dtype=torch.uint8)
    masks[:, 10:60, 20:70] = 1
    target = {"boxes": torch.tensor([[20.0, 10.0, 70.0, 60.0]]), "labels": torch.tensor([2]), "masks": masks}
    images = [torch.rand(3, 96, 96), torch.rand(3, 96, 96)]
    before = {key: value.clone() for key, value in net.backbone.body.named_buffers()}
    losses = net(images, [target, target])
    assert ("loss_mask" in losses) == (detector is MaskRCNN)
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert all(g.abs().max() > 0 for g in gradients(net.backbone.body))
    torch.optim.SGD(net.parameters(), lr=0.01).step()
    assert all(torch.equal(value, before[key]) for key, value in net.backbone.body.named_buffers())

    with torch.no_grad():
        found = net.eval()(images)
    assert len(found) == 2
    for image in found:
        count = len(image["boxes"])
        assert count > 0
        assert image["boxes"].shape == (count, 4)
        assert image["boxes"].min() >= 0
        assert image["boxes"].max() <= 96
        assert ("masks" in image) == (detector is MaskRCNN)


def test_a_detector_takes_the_pretrained_weights(r50):
    body = pyramid("slotcon_r50", pretrained=True).body
    assert all(torch.equal(value, r50[key]) for key, value in body.state_dict().items())
