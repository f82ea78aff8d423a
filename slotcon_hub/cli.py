"""The command ``slotcon-hub``."""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from slotcon_hub import __version__, store, weights
from slotcon_hub.importing import import_checkpoint
from slotcon_hub.publish import publish
from slotcon_hub.release import build, snippet
from slotcon_hub.verify import Check, verify_folder, verify_repository

__all__ = ["main"]

_IMPORT = """\
Put the teacher of a checkpoint into the local store, from where pretrained=True loads it by name, offline.

CHECKPOINT is any of
  an authors' full checkpoint, or a backbone-only file (.pth)
  a file of safetensors
  the folder of a run, of one of its checkpoints, or of its export

NAME is <architecture>.<tag>, as `slotcon-hub list` shows them, or one of your own such as slotcon_r18.mine.
Projector and prototypes, where the checkpoint has them, come under the architecture <...>_proto."""
_IMPORT_EXAMPLE = "example: slotcon-hub import ckpt_epoch_800.pth slotcon_r50.coco_800ep"
_LIST = """\
Show the published weights and those in the local store, with what the authors report: COCO box and mask AP of
Mask R-CNN R50-FPN 1x."""
_PUBLISH = """\
Publish weights of the local store on the Hub: build the folder (safetensors, configuration, card, tensors to
compare with), upload it in one commit, download it again, compare, and tag the commit with this package's version.
A backbone then loads in timm alone and in transformers.

Log in with `hf auth login`, or set HF_TOKEN. After an interruption, the same command goes on. The card is written
anew each time. A repository that holds something else than NAME is left alone without --force."""
_VERIFY = """\
Check a published model: files, SHA-256, configuration, card, and whether it still gives the tensors that came with
it. A repository is downloaded into the cache that timm and transformers use."""
_HOME = "The store is $SLOTCON_HUB_HOME, or a folder among the user's data; `slotcon-hub list` names it."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: of the command line; by default those of the process.

    Returns:
        The exit code: 0, or 1 after an error, which is one sentence on stderr. Wrong usage exits with 2.
    """
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except (ValueError, RuntimeError, OSError, MemoryError) as error:
        message = " ".join((str(error) or type(error).__name__).split())
        print(f"slotcon-hub: {message}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("slotcon-hub", description="Weights of SlotCon, by name.", epilog=_HOME)
    parser.add_argument("--version", action="version", version=f"slotcon-hub {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    bring = commands.add_parser(
        "import",
        help="put a checkpoint into the local store",
        description=_IMPORT,
        epilog=f"{_IMPORT_EXAMPLE}\n\n{_HOME}",
        formatter_class=raw,
    )
    bring.add_argument("checkpoint", metavar="CHECKPOINT", type=Path)
    bring.add_argument("name", metavar="NAME")
    bring.set_defaults(command=_import)
    show = commands.add_parser("list", help="show all weights and where they are", description=_LIST, epilog=_HOME)
    show.set_defaults(command=_list)
    _add_publishing(commands)
    return parser


def _add_publishing(commands: Any) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    send = commands.add_parser(
        "publish", help="publish weights on the Hub", description=_PUBLISH, epilog=_HOME, formatter_class=raw
    )
    send.add_argument("name", metavar="NAME", help="in the local store, such as slotcon_r50.coco_800ep")
    send.add_argument("--repo-id", metavar="ORG/NAME", help=f"by default {weights.repository('NAME')}")
    send.add_argument("--private", action="store_true", help="create a private repository")
    send.add_argument("--create-pr", action="store_true", help="open a pull request instead, each time a new one")
    send.add_argument("--force", action="store_true", help="replace all that the repository holds, whatever it is")
    send.add_argument("--preview", metavar="PICTURE", type=Path, help="PNG or JPEG, shown on the card")
    send.add_argument("--dry-run", action="store_true", help="build and check the folder, and upload nothing")
    send.set_defaults(command=_publish)
    look = commands.add_parser("verify", help="check a published model", description=_VERIFY, formatter_class=raw)
    look.add_argument(
        "place", metavar="REPO_OR_FOLDER", help="ORG/NAME or ORG/NAME@REVISION on the Hub, or a folder"
    )
    look.set_defaults(command=_verify)


def _import(options: argparse.Namespace) -> None:
    done = import_checkpoint(options.checkpoint, options.name)
    kinds = {
        "official": "an authors' full checkpoint",
        "slotcon": "the state of a SlotCon",
        "prototypes": "a backbone with projector and prototypes",
        "backbone": "a backbone alone",
    }
    print(f"{options.checkpoint} is {kinds[done.kind]}; its teacher is in the store. This works now:\n")
    print("import slotcon_hub\nimport timm\n")
    for name, folder in done.folders.items():
        known = weights.find(*name.split(".", 1)) is not None
        print(f'timm.create_model("{name if known else f"local-dir:{folder}"}", pretrained=True)')


def _publish(options: argparse.Namespace) -> None:
    if options.dry_run:
        folder = Path(tempfile.mkdtemp(prefix="slotcon-hub-"))
        build(options.name, folder, repo_id=options.repo_id, preview=options.preview)
        print(f"{folder}: nothing was uploaded.\n")
        _show(verify_folder(folder), str(folder))
        print(f"\nThis works now:\n\n{snippet(options.name, folder)}")
        return
    done = publish(
        options.name,
        repo_id=options.repo_id,
        private=options.private,
        create_pr=options.create_pr,
        force=options.force,
        preview=options.preview,
    )
    print(f"{done.url}\nrevision {done.pull_request or done.tag or 'main'}, commit {done.revision}")
    print(f"SHA-256 of {store.WEIGHTS}: {done.sha256}\n")
    print(f"This works now:\n\n{snippet(options.name, done.repo_id, done.pull_request)}")


def _verify(options: argparse.Namespace) -> None:
    if Path(options.place).is_dir():
        checks = verify_folder(options.place)
    else:
        repo_id, _, revision = options.place.partition("@")
        checks = verify_repository(repo_id, revision or None)
    _show(checks, options.place)


def _show(checks: Sequence[Check], place: str) -> None:
    for check in checks:
        print(f"{check.what:<8}{'ok' if check.ok else 'failed':<8}{check.found}")
    if failed := [check.what for check in checks if not check.ok]:
        raise ValueError(f"{place} is not as published: {', '.join(failed)} failed")


def _list(options: argparse.Namespace) -> None:
    rows = [("NAME", "TAG", "DATA", "PROTOTYPES", "BOX/MASK AP", "WEIGHTS")]
    for row in weights.ROWS:
        prototypes = str(row.prototypes) if row.has_prototypes else "-"
        reported = f"{row.box_ap} / {row.mask_ap}"
        rows.append((row.architecture, row.tag, row.data, prototypes, reported, _where(row)))
    for name in store.names():
        architecture, tag = name.split(".", 1)
        if weights.find(architecture, tag) is None:
            rows.append((architecture, tag, "-", "-", "-", "store"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for line in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    print(f"\nstore: {store.home()}")


def _where(row: weights.Weights) -> str:
    if store.find(row.name) is not None:
        return "store"
    if isinstance(try_to_load_from_cache(weights.repository(row.name), store.WEIGHTS), str):
        return "Hub, downloaded"
    return "nowhere yet" if row.sha256 is None else "Hub"
