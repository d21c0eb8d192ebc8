"""Table of all evaluations of a run: one row per result file eval/*.json."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from remask.report.reading import number, read_text

HEADS = ["evaluation", "trained", "untrained", "raw pixels", "tested on", "learned on", "pictures", "file"]
KINDS = {
    "probe": "kNN and logistic regression", "layers": "every layer, the best", "linprobe": "linear probe as MAE's",
    "attentive": "attentive probe", "finetune": "fine-tuned", "segment": "segmentation", "detect": "detection",
}  # fmt: skip
"""First word of a file's name → kind of evaluation."""
HEADLINES = {"top1": "top-1", "mIoU": "mIoU", "AP": "AP"}
NETWORKS = ("top1", "untrained", "pixels")
SHOWN = 4
"""Maximum number of values shown of an unknown kind of result."""


class Evaluation(NamedTuple):
    """A row's cells, in the order of HEADS, and the file's text."""

    cells: list[str]
    text: str


def evaluations(run: Path) -> list[Evaluation]:
    """A row for each result file, sorted by name; the latest of a kind, which has two files, appears once.

    An unreadable file gets a row that says so. Files with a list, like detections, are skipped.
    """
    rows, texts = list[Evaluation](), {path.name: read_text(path) for path in sorted((run / "eval").glob("*.json"))}
    for name, text in texts.items():
        try:
            content = json.loads(text)
        except ValueError:
            rows.append(Evaluation([_kind(name), "cannot be read", *[""] * (len(HEADS) - 3), name], text))
            continue
        if not isinstance(content, dict):
            continue
        unique_name = section_of(content, "protocol").get("kept_as")
        if unique_name == name or not isinstance(unique_name, str) or texts.get(unique_name) != text:
            rows.append(Evaluation([*_cells(name, content), name], text))
    return rows


def _cells(name: str, content: Mapping[str, Any]) -> list[str]:
    protocol = section_of(content, "protocol")
    networks = [_result(content, network) for network in NETWORKS]
    if not any(networks):
        networks[0] = _numbers(content)
    val, data = (str(protocol.get(key) or "") for key in ("val", "data"))
    tested = f"{data}: {val}" if val.startswith("a fifth of") else val or data
    return [_kind(name) + _details(protocol), *networks, tested, data, _images(content, protocol)]


def _kind(name: str) -> str:
    stem = name.removesuffix(".json")
    return KINDS.get(stem.partition("-")[0], stem)


def _details(protocol: Mapping[str, Any]) -> str:
    """The layer and the checkpoint in brackets, if they are not the last ones."""
    layer, checkpoint = section_of(protocol, "features").get("layer", -1), protocol.get("checkpoint", "last")
    details = [f"layer {layer}"] * (layer != -1) + [str(checkpoint)] * (checkpoint != "last")
    return f" ({', '.join(details)})" if details else ""


def _result(content: Mapping[str, Any], network: str) -> str:
    """The results of a network as text; "" if there are none."""
    best, shares = section_of(section_of(content, "best"), network), section_of(content, "fractions")
    values = {
        "linear": section_of(content, "linear").get(network),
        "kNN": section_of(content, "knn").get(network),
        **{f"linear at {percent(share)}": section_of(shares, share).get(network) for share in shares},
        **{
            f"{kind} at layer {section_of(best, kind).get('layer')}": section_of(best, kind).get("test")
            for kind in best
        },
    }
    texts = [f"{name} {value:.1f}" for name, value in values.items() if _is_number(value)]
    if not texts and network == "top1":
        texts = [
            f"{word} " + (f"{content[key]:.1f}" if _is_number(content[key]) else "–")
            for key, word in HEADLINES.items()
            if key in content and (content[key] is None or _is_number(content[key]))
        ][:1]
    if not texts and _is_number(content.get(network)):
        texts = [f"{content[network]:.1f}"]
    return ", ".join(texts)


def percent(share: str) -> str:
    """ "0.01" -> "1 % of the labels"."""
    try:
        return f"{100 * float(share):g} % of the labels"
    except ValueError:
        return share


def _numbers(content: Mapping[str, Any]) -> str:
    """The first numbers of an unknown kind of result as text."""
    return ", ".join([f"{key} {number(value)}" for key, value in content.items() if _is_number(value)][:SHOWN])


def _images(content: Mapping[str, Any], protocol: Mapping[str, Any]) -> str:
    """Numbers of training, test and unusable images as text."""
    counts, images = section_of(protocol, "pictures"), section_of(protocol, "images")
    train = counts.get("train", images.get("train", protocol.get("images")))
    test = counts.get("test", images.get("val", content.get("images")))
    bad = section_of(counts, "bad")
    unusable = {role: len(lines) if isinstance(lines, list) else lines for role, lines in bad.items()}
    unusable = unusable or {"test": content.get("bad_images")}
    texts = [f"{number(train)} to learn from"] * _is_number(train) + [f"{number(test)} tested"] * _is_number(test)
    texts += [f"{number(count)} of {role} unusable" for role, count in unusable.items() if _is_number(count) and count]
    return ", ".join(texts)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def section_of(content: Any, key: str) -> Mapping[str, Any]:
    """content[key] if that is a mapping, else {}."""
    value = content.get(key) if isinstance(content, Mapping) else None
    return value if isinstance(value, Mapping) else {}


__all__ = ["HEADS", "Evaluation", "evaluations", "percent", "section_of"]
