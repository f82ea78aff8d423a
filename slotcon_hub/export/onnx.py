"""Export a timm model to one ONNX file, checked against torch.

Dimensions: B images, C channels, K prototypes, H x W pixels.
"""

import copy
import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slotcon_hub.models.sizes import Sizes, find_sizes

__all__ = ["to_onnx"]


def to_onnx(model: nn.Module, path: str | Path, *, size: int, opset: int = 18) -> Path:
    """Export a model in eval mode and float32; batch, height and width stay free, if it takes more than one size.

    The file has one input, ``images`` (B x C x H x W, normalised as in training), and one ``output``: what the
    model returns, such as B x C features, or B x K x H x W similarities with ``global_pool=''``. It holds the
    weights, without the exporter's references to source files. It is only written if ONNX Runtime agrees with torch
    on other batch and image sizes than those of the export.

    Args:
        model: a backbone or a prototype model; it is copied, not changed.
        path: replaced if it exists; its folder is created.
        size: side in pixels of the images that the export is made with, and about that of those of the check.
        opset: version of ONNX's operators; at least 18, the oldest that torch writes.

    Returns:
        The path.

    Raises:
        ImportError: onnx, onnxscript or onnxruntime is not installed.
        ValueError: ``opset`` is out of range, or the model does not take images of ``size``.
        RuntimeError: torch cannot export the model, or ONNX Runtime disagrees with torch.
    """
    absent = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if absent:
        raise ImportError(f'an export to ONNX needs {", ".join(absent)}: pip install "path/to/slotcon_hub[onnx]"')
    if size < 1:
        raise ValueError(f"size={size} must be positive: give the side in pixels that the model was trained on")
    if opset < 18:
        raise ValueError(f"opset={opset} is older than torch supports: use 18 or later")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    net: Any = copy.deepcopy(model).cpu().float().eval()
    sizes = find_sizes(net)
    shape = sizes.nearest(size, size)
    if size not in shape:
        raise ValueError(f"size={size}, but {type(net).__name__} takes images {sizes}: use size={shape[0]}")
    examples = _examples(net, *shape, sizes)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as scratch:
        file = Path(scratch) / path.name
        _write(net, file, *shape, opset, free=sizes.only is None)
        _check(file, examples)
        file.replace(path)
    return path


def _write(net: nn.Module, file: Path, height: int, width: int, opset: int, *, free: bool) -> None:
    sides = {2: "height", 3: "width"} if free else {}
    try:
        program = torch.onnx.export(
            net,
            (_images(net, 2, height, width),),  # with a batch of one, torch would make it a constant
            dynamo=True,
            opset_version=opset,
            input_names=["images"],
            output_names=["output"],
            dynamic_shapes=({0: "batch", **sides},),
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        raise RuntimeError(f"torch cannot export {type(net).__name__} for any batch and size") from error
    assert program is not None  # as it is with dynamo
    written = program.model.opset_imports[""]
    if written != opset:
        raise ValueError(f"opset={opset} is unknown here; torch wrote {written}: use that, or update onnx")
    graph: Any = program.model.graph
    for part in (graph, *graph.all_nodes()):
        part.metadata_props.clear()
    program.save(file, external_data=False)


def _examples(net: nn.Module, height: int, width: int, sizes: Sizes) -> list[tuple[Tensor, Tensor]]:
    """Images of other batch and image sizes than those of the export, and torch's outputs for them."""
    examples = []
    wider, higher = ((pixels + sizes.step - 1) // sizes.step * sizes.step for pixels in (24, 33))
    if sizes.only:
        wider = higher = 0
    for shape in ((1, height, width + wider), (3, height + higher, width)):
        x = _images(net, *shape)
        try:
            with torch.no_grad():
                examples.append((x, net(x)))
        except (AssertionError, RuntimeError) as error:
            raise ValueError(
                f"{type(net).__name__} does not accept {shape[1]} x {shape[2]} images ({str(error).strip()}): "
                "export a network that takes any size"
            ) from None
    return examples


def _check(file: Path, examples: list[tuple[Tensor, Tensor]]) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for x, expected in examples:
        try:
            found = torch.from_numpy(session.run(None, {"images": x.numpy()})[0])
            agrees = found.shape == expected.shape
            agrees = agrees and bool((found - expected).abs().max() <= 1e-4 * expected.abs().max())  # False for NaN
            cause = None
        except Exception as error:  # ONNX Runtime's errors have no common class
            agrees, cause = False, error
        if not agrees:
            raise RuntimeError(
                f"ONNX Runtime disagrees with torch on {tuple(x.shape)} images, so nothing was written: "
                "update torch and onnxscript, or report it with the name of the model"
            ) from cause


def _images(net: Any, batch: int, height: int, width: int) -> Tensor:
    """Random B x C x H x W, the same on each call; the global random state is unchanged."""
    return torch.randn(batch, net.in_chans, height, width, generator=torch.Generator().manual_seed(0))
