"""The commands ``slotcon-hub publish`` and ``verify``: models on the Hub."""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slotcon_hub.cli.help import Help
from slotcon_hub.cli.options import check_output
from slotcon_hub.models.loading import is_known
from slotcon_hub.publishing.publish import publish
from slotcon_hub.publishing.release import build, snippet
from slotcon_hub.publishing.space import build_space, publish_space
from slotcon_hub.publishing.verify import Check, verify_folder, verify_repository
from slotcon_hub.weights import store, table

__all__ = ["add_commands"]

_PUBLISH = """\
Publish weights on the Hub: build the folder (safetensors, configuration, card, reference tensors), upload it in one
commit, download it again, compare, and tag the commit with this package's version. A published backbone loads in
timm without this package, and in transformers.

Log in with `hf auth login`, or set HF_TOKEN. After an interruption, the same command resumes. The card is always
overwritten. A repository with other content than NAME is not changed without --force.

--space publishes a page on which one tries a prototype model that is on the Hub already, as `slotcon-hub explore`
shows it: a Space of the same ORG/NAME. The Space installs this package, which is not on PyPI yet, from a URL."""
_VERIFY = """\
Check a published model: files, SHA-256, configuration, card, and whether it reproduces its reference tensors.
A repository is downloaded into the cache that timm and transformers use."""
_NAME = """in the local store, such as slotcon_r50.coco_800ep; or the folder of a run, or another checkpoint that
import takes, with --repo-id ORG/slotcon_r50.mine"""
_HOME = "The store is $SLOTCON_HUB_HOME, or a folder in the user's data folder; `slotcon-hub list` prints it."


def add_commands(commands: Any) -> None:
    """Add the subcommands to those of the parser."""
    send = commands.add_parser(
        "publish", help="publish weights on the Hub", description=_PUBLISH, epilog=_HOME, formatter_class=Help
    )
    send.add_argument("name", metavar="NAME", help=_NAME)
    send.add_argument("--repo-id", metavar="ORG/NAME", help=f"by default {table.repository('NAME')}")
    send.add_argument("--private", action="store_true", help="create a private repository")
    send.add_argument("--create-pr", action="store_true", help="open a new pull request instead")
    send.add_argument("--force", action="store_true", help="replace all content of the repository")
    send.add_argument("--preview", metavar="IMAGE", type=Path, help="PNG or JPEG to show on the card")
    send.add_argument("--space", action="store_true", help="publish the page of the model instead, as a Space")
    send.add_argument(
        "--install-from",
        metavar="URL",
        help="with --space: of this package for pip, such as git+https://HOST/slotcon_hub",
    )
    send.add_argument("--dry-run", action="store_true", help="build and check the folder without uploading")
    send.add_argument("--output", metavar="FOLDER", type=Path, help="with --dry-run: where the folder is built")
    send.set_defaults(command=_publish, error=send.error)
    look = commands.add_parser("verify", help="check a published model", description=_VERIFY, formatter_class=Help)
    look.add_argument(
        "place", metavar="REPO_OR_FOLDER", help="ORG/NAME or ORG/NAME@REVISION on the Hub, or a folder"
    )
    look.set_defaults(command=_verify)


def _publish(options: argparse.Namespace) -> None:
    if options.output and not options.dry_run:
        options.error("--output is for --dry-run only: add --dry-run, or leave --output out")
    if options.output:
        check_output(options.output)
    if bool(options.install_from) != options.space:
        options.error("--space needs --install-from, the URL of this package for the Space: give both, or neither")
    if options.space:
        _publish_space(options)
        return
    name, checkpoint = _split_source(options)
    if options.dry_run:
        folder = options.output or Path(tempfile.mkdtemp(prefix="slotcon-hub-"))
        build(name, folder, checkpoint=checkpoint, repo_id=options.repo_id, preview=options.preview)
        print(f"{folder}: nothing was uploaded.\n")
        _print_checks(verify_folder(folder), str(folder))
        print(f"\nThis works now:\n\n{snippet(name, folder)}")
        return
    done = publish(
        name,
        checkpoint=checkpoint,
        repo_id=options.repo_id,
        private=options.private,
        create_pr=options.create_pr,
        force=options.force,
        preview=options.preview,
    )
    print(f"{done.url}\nrevision {done.pull_request or done.tag or 'main'}, commit {done.revision}")
    print(f"SHA-256 of {store.WEIGHTS}: {done.sha256}\n")
    print(f"This works now:\n\n{snippet(name, done.repo_id, done.pull_request)}")


def _publish_space(options: argparse.Namespace) -> None:
    if options.create_pr or options.preview:
        options.error("--create-pr and --preview are for models: leave them out with --space")
    if options.dry_run:
        folder = options.output or Path(tempfile.mkdtemp(prefix="slotcon-hub-"))
        build_space(options.name, folder, install_from=options.install_from, repo_id=options.repo_id)
        print(
            f"{folder}: nothing was uploaded. Try it by `python {folder / 'app.py'}` once its model is on the Hub."
        )
        return
    url = publish_space(
        options.name,
        install_from=options.install_from,
        repo_id=options.repo_id,
        private=options.private,
        force=options.force,
    )
    print(url)


def _split_source(options: argparse.Namespace) -> tuple[str, Path | None]:
    """The name to publish, and its checkpoint unless it is in the store; names take precedence over paths."""
    path = Path(options.name)
    if is_known(options.name) or not path.exists():
        return table.full_name(options.name), None
    if options.repo_id is None:
        raise ValueError(f"{path} has no name: give one, such as --repo-id {table.ORGANISATION}/slotcon_r50.mine")
    return options.repo_id.rpartition("/")[2], path


def _verify(options: argparse.Namespace) -> None:
    if Path(options.place).is_dir():
        checks = verify_folder(options.place)
    else:
        repo_id, _, revision = options.place.partition("@")
        checks = verify_repository(repo_id, revision or None)
    _print_checks(checks, options.place)


def _print_checks(checks: Sequence[Check], place: str) -> None:
    for check in checks:
        print(f"{check.what:<8}{'ok' if check.ok else 'failed':<8}{check.found}")
    if failed := [check.what for check in checks if not check.ok]:
        raise ValueError(f"{place} differs from what was published: {', '.join(failed)} failed")
