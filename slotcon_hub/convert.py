"""Conversions of state dicts between naming schemes; tensors are shared with the input, not copied."""

import re
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

__all__ = [
    "detectron2_name",
    "from_backbone_only",
    "from_official",
    "prototypes_backbone",
    "recognise",
    "teacher_backbone",
    "teacher_prototypes",
    "to_detectron2",
    "to_mmseg",
    "to_torchvision",
    "unwrap_state_dict",
]

# The authors' names, as published, and ours.
_OFFICIAL = {
    r"encoder_q\.": "student.backbone.",
    r"encoder_k\.": "teacher.backbone.",
    r"projector_q\.mlp\.": "student.projector.mlp.",
    r"projector_k\.mlp\.": "teacher.projector.mlp.",
    r"grouping_q\.slot_embed\.": "student.prototypes.",
    r"grouping_k\.slot_embed\.": "teacher.prototypes.",
    r"predictor_slot\.mlp\.": "predictor.mlp.",
    r"center$": "center",
}

Kind = Literal["official", "slotcon", "prototypes", "backbone"]
_PARTS: dict[Kind, set[str]] = {
    "official": {"encoder_q", "encoder_k"},
    "slotcon": {"student", "teacher"},
    "prototypes": {"backbone", "projector", "prototypes"},
}
_AROUND_BACKBONE = re.compile(r"^(?:(?:encoder_k|backbone)\.)+")
# Prefixes that DistributedDataParallel, torch.compile, FSDP and activation checkpointing add at any depth.
_WRAPPED = re.compile(r"(?<![^.])(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_RESNET = re.compile(r"(?:conv1|bn1|layer[1-4])\.")
# Standard ResNets: no deep stem, no pooling in the shortcut, no attention.
_PLAIN_RESNET = re.compile(
    r"(?:conv1|bn1|layer[1-4]\.\d+\.(?:conv[123]|bn[123]|downsample\.[01]))"
    r"\.(?:weight|bias|running_mean|running_var|num_batches_tracked)"
)


def recognise(checkpoint: Mapping[str, Any]) -> Kind:
    """Classify a loaded checkpoint by its keys.

    Args:
        checkpoint: a state dict, or a mapping with one under ``model``, ``state_dict`` or ``teacher``.

    Returns:
        "official": an authors' full checkpoint, for :func:`from_official`; "slotcon": the state of a
        :class:`SlotCon`, as our runs write it, for :func:`teacher_backbone` and :func:`teacher_prototypes`;
        "prototypes": a backbone with projector and prototypes; "backbone": a ResNet alone, for
        :func:`from_backbone_only`.

    Raises:
        ValueError: it is none of these.
    """
    state = unwrap_state_dict(checkpoint)
    heads = {name.split(".")[0] for name in state}
    for kind, parts in _PARTS.items():
        if parts <= heads:
            return kind
    if any(_RESNET.match(_AROUND_BACKBONE.sub("", name)) for name in state):
        return "backbone"
    found = ", ".join(sorted(heads)[:5]) or "nothing"
    raise ValueError(
        f"this is not a SlotCon checkpoint, since its keys begin with {found}: give one with encoder_q and "
        "encoder_k (the authors'), student and teacher (ours), backbone, projector and prototypes, or a ResNet's "
        "conv1 and layers"
    )


def from_official(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Turn an authors' full checkpoint into a state dict that loads strictly into :class:`SlotCon`.

    Args:
        checkpoint: the loaded mapping, or its ``model`` entry, with or without wrapper prefixes such as ``module.``
            and ``_orig_mod.``.

    Returns:
        Student, teacher, predictor and centre; tensors and dtypes are those of the checkpoint.

    Raises:
        ValueError: a key is unknown, or a whole part is absent.
    """
    converted = {}
    for name, value in unwrap_state_dict(checkpoint).items():
        prefix = next((p for p in _OFFICIAL if re.match(p, name)), None)
        if prefix is None or not isinstance(value, Tensor):
            raise ValueError(f"{name!r} is not part of an official SlotCon checkpoint: is this file one?")
        converted[re.sub(f"^{prefix}", _OFFICIAL[prefix], name)] = value
    absent = [ours for ours in _OFFICIAL.values() if not any(k.startswith(ours) for k in converted)]
    if absent:
        raise ValueError(
            f"the checkpoint has no {', '.join(n.rstrip('.') for n in absent)}: a full checkpoint holds student, "
            "teacher, predictor and centre; training cannot continue from a backbone-only file"
        )
    return converted


def from_backbone_only(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Turn a backbone-only file, such as the authors' teacher encoder, into the state dict of a timm ResNet.

    Args:
        checkpoint: a state dict with torchvision's or timm's names, bare or after ``encoder_k.``, ``backbone.`` or
            wrapper prefixes; or a mapping with one under ``model``, ``state_dict`` or ``teacher``.

    Returns:
        The backbone without ``fc``.

    Raises:
        ValueError: a key is not a ResNet's or occurs twice, or there are no keys.
    """
    converted: dict[str, Tensor] = {}
    for key, value in unwrap_state_dict(checkpoint).items():
        name = _AROUND_BACKBONE.sub("", key)
        if name in ("fc.weight", "fc.bias"):
            continue
        if not _RESNET.match(name) or not isinstance(value, Tensor):
            raise ValueError(
                f"{key!r} is not part of a backbone-only file: recognise(...) names the kind of this one"
            )
        if name in converted:
            raise ValueError(f"{key!r} occurs twice, under two prefixes: the file holds more than one backbone")
        converted[name] = value
    if not converted:
        raise ValueError("the checkpoint holds no key of a ResNet backbone, such as conv1.weight")
    return converted


def teacher_backbone(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Extract the teacher's backbone, the released one, from the state dict of a :class:`SlotCon`.

    Raises:
        ValueError: there is none.
    """
    return _strip_prefix(state, "teacher.backbone.")


def teacher_prototypes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Extract the teacher (backbone, projector and prototypes) from the state dict of a :class:`SlotCon`.

    Raises:
        ValueError: there is none.
    """
    return _strip_prefix(state, "teacher.")


def prototypes_backbone(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Extract the backbone from the state dict of a prototype model.

    Raises:
        ValueError: there is none.
    """
    return _strip_prefix(state, "backbone.")


def to_torchvision(backbone_state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Check that a backbone loads as a torchvision ResNet without ``fc``, whose names are the same.

    Args:
        backbone_state: of a plain ResNet in timm's names, without a classifier.

    Raises:
        ValueError: the backbone is no plain ResNet, or there is none.
    """
    if not any(_RESNET.match(key) for key in backbone_state):
        raise ValueError(
            "these weights hold no key of a ResNet backbone, such as conv1.weight: if they are the state of a "
            "SlotCon, convert teacher_backbone(state)"
        )
    for key in backbone_state:
        if not _PLAIN_RESNET.fullmatch(key):
            raise ValueError(
                f"{key!r} does not exist in torchvision, Detectron2 and MMSegmentation, which take standard "
                "ResNets only (no deep stem as in slotcon_nano, no classifier): use this network with timm or ONNX"
            )
    return dict(backbone_state)


def to_detectron2(backbone_state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Convert a backbone to the content of a Detectron2 ``.pkl`` file for ``MODEL.WEIGHTS``.

    Its configuration must be torchvision's: RGB images in ``INPUT.FORMAT``, ``PIXEL_MEAN`` and ``PIXEL_STD`` of
    ImageNet times 255, and ``MODEL.RESNETS.STRIDE_IN_1X1 False``.

    Args:
        backbone_state: of a plain ResNet in timm's names, without a classifier.

    Returns:
        ``{"model": {name: float32 array}, "__author__": ..., "matching_heuristics": True}``.
        ``num_batches_tracked``, which Detectron2's frozen norms lack, is left out.

    Raises:
        ValueError: the backbone is no plain ResNet, or there is none.
    """
    model = {
        detectron2_name(key): value.detach().float().cpu().numpy()
        for key, value in to_torchvision(backbone_state).items()
        if not key.endswith("num_batches_tracked")
    }
    return {"model": model, "__author__": "SlotCon", "matching_heuristics": True}


def to_mmseg(backbone_state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Convert a backbone to a checkpoint for MMSegmentation and MMDetection, to be written by ``torch.save``.

    Load it by ``init_cfg=dict(type="Pretrained", checkpoint=...)`` of a ``ResNet`` with ``style="pytorch"``, not of
    a ``ResNetV1c``, whose stem is deep.

    Args:
        backbone_state: of a plain ResNet in timm's names, without a classifier.

    Raises:
        ValueError: the backbone is no plain ResNet, or there is none.
    """
    return {"state_dict": to_torchvision(backbone_state)}


def detectron2_name(name: str) -> str:
    """``layer1.0.bn2.bias`` to ``res2.0.conv2.norm.bias``; keys outside the layers belong to the stem."""
    name = re.sub(r"bn(\d)", r"conv\1.norm", name)
    name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
    layer = re.match(r"layer(\d)", name)
    return f"res{int(layer[1]) + 1}{name[layer.end() :]}" if layer else f"stem.{name}"


def _strip_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    found = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if not found:
        raise ValueError(f"these weights hold no {prefix.rstrip('.')}: they are not the state of a SlotCon")
    return found


def unwrap_state_dict(checkpoint: Any) -> Mapping[str, Any]:
    """Take the state dict out of the mappings around it: ``model``, ``state_dict``, ``teacher``.

    Returns:
        Values by key, without wrapper prefixes such as ``module.`` and ``_orig_mod.``.

    Raises:
        ValueError: there is no state dict, or two keys differ in their wrapper prefixes only.
    """
    while isinstance(checkpoint, Mapping):
        inner = (checkpoint.get(key) for key in ("model", "state_dict", "teacher"))
        wrapped = next((value for value in inner if isinstance(value, Mapping)), None)
        if wrapped is None:
            break
        checkpoint = wrapped
    if not isinstance(checkpoint, Mapping) or not all(isinstance(key, str) for key in checkpoint):
        raise ValueError(f"a checkpoint holds named tensors, which this {type(checkpoint).__name__} does not")
    bare: dict[str, Any] = {}
    for key, value in checkpoint.items():
        name = _WRAPPED.sub("", key)
        if name in bare:
            raise ValueError(f"{name!r} occurs twice, under two prefixes: the file holds more than one model")
        bare[name] = value
    return bare
