"""Model cards: the README of a repository, from the table of weights and the template ``card.md``.

``python -m slotcon_hub.publishing.cards model_cards`` writes the cards of the table.
"""

import sys
from pathlib import Path
from typing import Any

import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from slotcon_hub.models.prototype_model import SlotConPrototypes
from slotcon_hub.publishing.card_metadata import TERMS, check, metadata
from slotcon_hub.publishing.card_usage import usage
from slotcon_hub.templates import render_template
from slotcon_hub.weights import table
from slotcon_hub.weights.architectures import plain_timm

__all__ = ["check", "main", "render"]

_PAPER = "[SlotCon](https://arxiv.org/abs/2205.15288) (Wen et al., NeurIPS 2022)"


def render(name: str, *, repo_id: str | None = None, config: dict[str, Any] | None = None) -> str:
    """Render the model card of weights: all facts of the table's weights, only the network for others.

    Args:
        name: ``<architecture>.<tag>``.
        repo_id: of the repository on the Hub; by default that of the table.
        config: the ``config.json`` of a published folder; weights outside the table need it.

    Returns:
        The whole ``README.md``, with metadata that pass :func:`check`.

    Raises:
        ValueError: the name is invalid, or the configuration is missing, incomplete or of another network.
    """
    architecture, _, tag = name.partition(".")
    if not tag:
        raise ValueError(f"{name!r} is no name of weights: use architecture and tag, such as {name}.mine")
    row = table.find(architecture, tag)
    repo_id = repo_id or table.repository(name)
    net = _network(name, row, config)
    has_prototypes = isinstance(net, SlotConPrototypes)
    args = {} if config is None else config.get("model_args", {})
    transformers = not has_prototypes and "num_classes" not in args  # its timm wrapper passes its own
    head = metadata(row, repo_id, ["transformers"] if transformers else [])
    results = row.results if row else ()
    backbone_results = row.backbone.results if row and has_prototypes else ()
    card = render_template(
        Path(__file__).with_name("card.md"),
        metadata=head,
        name=name,
        usage=usage(name, repo_id, net, transformers=transformers),
        network=_of_network(net, f" on {row.data}" if row else ""),
        row=row,
        results=results,
        backbone_results=backbone_results,
        reported=any(result.command is None for result in (*results, *backbone_results)),
        terms=TERMS,
        operations=_operations(net) if row else "",
    )
    check(card)
    return card


def main(folder: str | Path) -> None:
    """Write the cards of the table into a folder, replacing all cards there."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.md"):
        old.unlink()
    for row in table.ROWS:
        (folder / f"{row.name}.md").write_text(render(row.name), encoding="utf-8")


def _network(name: str, row: table.Weights | None, config: dict[str, Any] | None) -> Any:
    """Build the network in eval mode on the meta device."""
    if config is None and row is None:
        raise ValueError(f"there are no published weights {name}: give the config.json of their folder")
    if config is None:
        with torch.device("meta"):
            return timm.create_model(name).eval()
    architecture, tag = name.split(".", 1)
    try:
        found, classes, cfg = config["architecture"], config["num_classes"], config["pretrained_cfg"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"the configuration of {name} lacks {error}: export the model again") from None
    if found not in (architecture, plain_timm(architecture)[0]):
        raise ValueError(f"the configuration is of {found}, which {name} is not: use a name such as {found}.{tag}")
    if row is not None and classes != (row.prototypes if row.has_prototypes else 0):
        raise ValueError(f"the configuration has {classes} classes, unlike {name}: use a tag of your own")
    args = {**config.get("model_args", {}), "num_classes": classes}
    with torch.device("meta"):
        return timm.create_model(found, pretrained_cfg={**cfg, "architecture": found}, **args).eval()


def _of_network(net: Any, on: str) -> dict[str, str]:
    has_prototypes = isinstance(net, SlotConPrototypes)
    backbone = net.backbone if has_prototypes else net
    plain = plain_timm(backbone.pretrained_cfg["architecture"])[0]
    what = f"A backbone (timm's `{plain}`, without classifier)"
    output = f"{net.head_hidden_size} features, or the backbone's maps"
    if has_prototypes:
        what = f"A backbone (timm's `{plain}`) with a projector and {net.num_classes} semantic prototypes"
        output = (
            f"similarities with {net.num_classes} prototypes in [-1, 1], of the image or of each cell of the map"
        )
    cfg = net.pretrained_cfg
    channels, height, width = cfg["input_size"]
    mean, std = (", ".join(f"{value:g}" for value in cfg[key]) for key in ("mean", "std"))
    return {
        "what": f"{what}, pre-trained without labels{on} by {_PAPER}. SlotCon learns features and prototypes "
        "jointly: the cells of an image are grouped by their most similar prototype, and two views of the image "
        "must agree on the groups and on their features.",
        "input": f"{channels} x {height} x {width}, or any other size; {cfg['interpolation']} resize, centre crop "
        f"of {cfg['crop_pct']:g} of the shorter side; mean ({mean}), standard deviation ({std})",
        "output": output,
        "stride": str(net.feature_info[-1]["reduction"]),
        "parameters": f"{sum(p.numel() for p in net.parameters()) / 1e6:.1f} M",
    }


def _operations(net: Any) -> str:
    """Multiply-adds for an image of the default size."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, *net.pretrained_cfg["input_size"], device="meta"))
    return f"{counter.get_total_flops() / 2e9:.2f} G"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m slotcon_hub.publishing.cards FOLDER")
    main(sys.argv[1])
