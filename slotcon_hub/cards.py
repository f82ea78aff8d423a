"""The card of a published model, and what a card must have."""

from typing import Any

from huggingface_hub import ModelCard

from slotcon_hub import weights

__all__ = ["check", "render"]

_LICENCES = ("apache-2.0", "cc-by-nc-4.0", "other")
_PIPELINE_TAGS = ("image-feature-extraction",)
_TAGS = ("timm", "transformers", "slotcon", "self-supervised-learning")


def render(name: str, *, repo_id: str | None = None, config: dict[str, Any] | None = None) -> str:
    """Write the README.md of a repository, with its front matter.

    Args:
        name: ``<architecture>.<tag>``.
        repo_id: of the repository, by default that of the name.
        config: of the model, for names that are not in the table.
    """
    row = weights.find(*name.split(".", 1))
    needs = "import timm" if not name.partition(".")[0].endswith("_proto") else "import slotcon_hub\nimport timm"
    return f"""---
license: {row.licence if row else "other"}
library_name: timm
pipeline_tag: image-feature-extraction
tags:
- slotcon
---
# {name}

A {(config or {}).get("architecture", "model")} pre-trained without labels by SlotCon.

```python
{needs}

model = timm.create_model("hf-hub:{repo_id or weights.repository(name)}", pretrained=True)
```
"""


def check(text: str) -> None:
    """Refuse a card whose licence, pipeline tag or tags are none of ours.

    Raises:
        ValueError: which one.
    """
    data = ModelCard(text).data.to_dict()
    for key, known in (("license", _LICENCES), ("pipeline_tag", _PIPELINE_TAGS), ("tags", _TAGS)):
        told = data.get(key)
        for value in told if isinstance(told, list) else [told]:
            if value not in known:
                raise ValueError(f"the card's {key} is {value!r}: use one of {', '.join(known)}")
