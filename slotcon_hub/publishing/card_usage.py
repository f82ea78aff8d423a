"""The usage section of a model card; each code block runs after the first one."""

from typing import Any

import torch
from torch import Tensor

from slotcon_hub.models.prototype_model import SlotConPrototypes
from slotcon_hub.weights import table

__all__ = ["usage"]


@torch.no_grad()
def usage(name: str, repo_id: str, net: Any, *, transformers: bool) -> str:
    """Write the section.

    Args:
        name: ``<architecture>.<tag>``.
        repo_id: of the repository on the Hub.
        net: the network in eval mode; the meta device suffices.
        transformers: whether transformers can load it.
    """
    architecture, tag = name.split(".", 1)
    row = table.find(architecture, tag)
    image = torch.zeros(1, *net.pretrained_cfg["input_size"], device=next(net.parameters()).device)
    first = _prototypes if isinstance(net, SlotConPrototypes) else _backbone
    parts = [first(repo_id, net, image), _features(net)]
    if transformers:
        parts.append(_transformers(repo_id, net, image))
    if architecture.startswith("slotcon_") and architecture != "slotcon_proto":  # which is not in hubconf.py
        parts.append(_torch_hub(architecture, repo_id, None if row is None else row.tag))
    if row is not None:
        parts.append(_by_name(row))
    return "\n".join(parts)


def _backbone(repo_id: str, net: Any, image: Tensor) -> str:
    return f"""\
With timm alone:

```python
import timm
import torch
from PIL import Image

name = "hf-hub:{repo_id}"
model = timm.create_model(name, pretrained=True).eval()
{_IMAGE}  # {_shape(image)}
with torch.no_grad():
    features = model(image)  # {_shape(net(image))}
    cells = model.forward_features(image)  # {_shape(net.forward_features(image))}
```
"""


def _prototypes(repo_id: str, net: Any, image: Tensor) -> str:
    cells = net.forward_features(image)
    projections = net.projector(cells)
    return f"""\
With timm and this package (`pip install path/to/slotcon_hub`):

```python
import slotcon_hub
import timm
import torch
from PIL import Image

name = "hf-hub:{repo_id}"
model = timm.create_model(name, pretrained=True, global_pool="").eval()
{_IMAGE}  # {_shape(image)}
with torch.no_grad():
    cells = model.forward_features(image)  # {_shape(cells)}, of the backbone
    projections = model.forward_head(cells, pre_logits=True)  # {_shape(projections)}
    similarities = model(image)  # {_shape(net.prototypes(projections))}, cosines with the prototypes
groups = similarities.argmax(1)  # the prototype of each cell
prototypes = model.prototypes.weight  # {_shape(net.prototypes.weight)}
```

Without `global_pool=""` the similarities are averaged over the cells.
"""


_IMAGE = """\
config = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**config, is_training=False)
image = transform(Image.open("image.jpg").convert("RGB")).unsqueeze(0)"""


def _features(net: Any) -> str:
    strides = ", ".join(str(level["reduction"]) for level in net.feature_info)
    return f"""\
Maps of the backbone's stages, of strides {strides}:

```python
backbone = timm.create_model(name, pretrained=True, features_only=True).eval()
maps = backbone(image)
```
"""


def _transformers(repo_id: str, net: Any, image: Tensor) -> str:
    return f"""\
With transformers:

```python
from transformers import AutoImageProcessor, AutoModel

name = "{repo_id}"
processor = AutoImageProcessor.from_pretrained(name)
model = AutoModel.from_pretrained(name).eval()
with torch.no_grad():
    output = model(**processor(Image.open("image.jpg").convert("RGB"), return_tensors="pt"))
output.pooler_output  # {_shape(net(image))}
output.last_hidden_state  # {_shape(net.forward_features(image))}
```
"""


def _torch_hub(architecture: str, repo_id: str, tag: str | None) -> str:
    if tag is not None:
        first, pretrained = "", f'"{tag}"'
    else:
        first, pretrained = "from huggingface_hub import snapshot_download\n\n", f'snapshot_download("{repo_id}")'
    return f"""\
With torch.hub, from a checkout of this package:

```python
{first}model = torch.hub.load("path/to/slotcon_hub", "{architecture}", source="local", pretrained={pretrained})
```
"""


def _by_name(row: table.Weights) -> str:
    alone = row.backbone.name
    both = f"{row.backbone.architecture}_proto.{row.tag}"
    return f"""\
Backbone and prototypes of this pre-training by name, with this package (its local store comes before the Hub):

```python
import slotcon_hub

backbone = timm.create_model("{alone}", pretrained=True)
grouping = timm.create_model("{both}", pretrained=True, global_pool="").eval()
similarities = grouping(image)  # cosines of each cell with {row.prototypes} prototypes
```
"""


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))
