"""The YAML metadata of a model card, checked against our own lists, since the Hub accepts almost anything."""

from collections.abc import Iterable
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from slotcon_hub.weights.table import Weights

__all__ = ["TERMS", "check", "metadata"]

TERMS = {
    "coco": "COCO: the terms of access to its images, which are Flickr's, allow non-commercial research and "
    "education. Its annotations (CC BY 4.0) were not used.",
    "frgfm/imagenette": "Imagenette: ten classes of ImageNet, whose terms of access allow non-commercial "
    "research and education. Its labels were not used in training.",
    "ILSVRC/imagenet-1k": "ImageNet: the terms of access to its images allow non-commercial research and "
    "education. Its labels were not used.",
}
"""Terms of the pre-training data sets, by their ids on the Hub."""

_BENCHMARKS = {
    "COCO val2017": "coco",
    "Cityscapes val": "cityscapes",
    "PASCAL VOC 2012 val": "pascal-voc-2012",
    "ADE20K val": "zhoubolei/scene_parse_150",
    "Imagenette validation": "frgfm/imagenette",
}
_METRICS = {  # the Hub's names of task and metric
    "box AP": ("object-detection", "mAP"),
    "mask AP": ("image-segmentation", "mAP"),
    "mIoU": ("image-segmentation", "mean_iou"),
    "top-1 accuracy": ("image-classification", "accuracy"),
}
_LICENCES = {"apache-2.0", "other"}
_TAGS = {
    "image-feature-extraction",
    "self-supervised-learning",
    "semantic-grouping",
    "slotcon",
    "timm",
    "transformers",
}
_FIXED: dict[str, Any] = {"library_name": "timm", "pipeline_tag": "image-feature-extraction"}
_KEYS = {*_FIXED, "tags", "datasets", "license", "license_name", "license_link", "model-index"}


def metadata(row: Weights | None, repo_id: str, tags: Iterable[str] = ()) -> str:
    """Write the YAML of a card.

    Args:
        row: of the table; None for other weights, whose licence is unknown.
        repo_id: of the repository that the card is for.
        tags: added to those of every card.

    Raises:
        ValueError: a data set or a metric of the row is not in our lists.
    """
    facts: dict[str, Any] = {}
    if row is not None:
        facts = {"license": row.licence, "datasets": list(row.datasets)}
        if row.licence == "other":
            facts |= {"license_name": "not-stated-by-the-authors", "license_link": row.origin}
        if row.results:
            facts |= {"model_name": row.name, "eval_results": _results(row, repo_id)}
    every = ("image-feature-extraction", "timm", "slotcon", "self-supervised-learning", "semantic-grouping")
    return f"---\n{ModelCardData(**_FIXED, tags=[*every, *tags], **facts).to_yaml()}\n---\n"


def _results(row: Weights, repo_id: str) -> list[EvalResult]:
    paper = f"https://arxiv.org/abs/{row.paper.removeprefix('arXiv:')}"
    results = []
    for result in row.results:
        if result.dataset not in _BENCHMARKS or result.metric not in _METRICS:
            raise ValueError(
                f"the Hub's id of {result.dataset} or {result.metric} is unknown: add it to {__name__}"
            )
        task, metric = _METRICS[result.metric]
        results.append(
            EvalResult(
                task_type=task,
                dataset_type=_BENCHMARKS[result.dataset],
                dataset_name=result.dataset,
                metric_type=metric,
                metric_value=result.value,
                metric_name=f"{result.metric} ({result.protocol})",
                verified=False,
                source_name=result.source,
                source_url=paper if result.command is None else f"https://huggingface.co/{repo_id}",
            )
        )
    return results


def check(text: str) -> None:
    """Check the metadata of a model card, offline.

    Args:
        text: a whole card, as in ``README.md``.

    Raises:
        ValueError: it is missing or malformed, a value is not in our lists, or the model-index is invalid.
    """
    card = _parsed(text)
    facts = card.to_dict()
    if unknown := sorted(facts.keys() - _KEYS):
        raise ValueError(f"the card's metadata have a key {unknown[0]!r}: use only {', '.join(sorted(_KEYS))}")
    for key, value in _FIXED.items():
        if facts.get(key) != value:
            raise ValueError(f"the card's {key} is {facts.get(key)!r}: make it {value}")
    _check_listed("tag", facts.get("tags"), _TAGS)
    _check_listed("data set", facts.get("datasets", []), TERMS)
    if "license" in facts:
        _check_listed("licence", [facts["license"]], _LICENCES)
        if facts["license"] == "other" and not (facts.get("license_name") and facts.get("license_link")):
            raise ValueError("the card's licence is 'other': add license_name and license_link")
    for result in card.eval_results or []:
        _check_result(result)


def _parsed(text: str) -> ModelCardData:
    if not text.startswith("---\n") or "\n---\n" not in text:
        raise ValueError("the card has no metadata: begin it with a block of YAML between two lines of ---")
    try:
        data: Any = ModelCard(text).data
    except Exception as error:  # includes errors of the YAML library
        problem = " ".join(str(error).split())
        raise ValueError(
            f"the card's metadata are invalid ({problem}): correct them, or render the card again"
        ) from None
    return data


def _check_listed(what: str, found: Any, allowed: Iterable[str]) -> None:
    if not isinstance(found, list):
        raise ValueError(f"the card's {what}s are {found!r}: make them a list")
    if unknown := [value for value in found if value not in allowed]:
        raise ValueError(f"the card has a {what} {unknown[0]!r}: use one of {', '.join(sorted(allowed))}")


def _check_result(result: EvalResult) -> None:
    named = f"the card's model-index has {result.metric_name or result.metric_type!r} on {result.dataset_name}"
    _check_listed("data set of evaluation", [result.dataset_type], _BENCHMARKS.values())
    if (result.task_type, result.metric_type) not in _METRICS.values():
        known = ", ".join(sorted({" ".join(pair) for pair in _METRICS.values()}))
        raise ValueError(f"{named} as {result.task_type} {result.metric_type}: use one of {known}")
    if not isinstance(result.metric_value, float | int):
        raise ValueError(f"{named} with the value {result.metric_value!r}: make it a number, in per cent")
    if result.verified is not False or not result.source_name:
        raise ValueError(f"{named} without a source: add its name and URL, and verified: false")
