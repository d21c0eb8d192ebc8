"""Every evaluation of a run as a row: eval/*.json, of whatever name."""

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
"""By the first word of a file's name."""
HEADLINES = {"top1": "top-1", "mIoU": "mIoU", "AP": "AP"}
NETWORKS = ("top1", "untrained", "pixels")
SHOWN = 4
"""Numbers of a result of another making."""


class Evaluation(NamedTuple):
    """Cells under HEADS, and the file's content as it is."""

    cells: list[str]
    text: str


def evaluations(run: Path) -> list[Evaluation]:
    """A row for each file that holds a result, by name; the latest of a kind, which lies there twice, by its own name.

    A file that cannot be read is a row that says so; a list, such as that of detections, is no result.
    """
    found, texts = list[Evaluation](), {path.name: read_text(path) for path in sorted((run / "eval").glob("*.json"))}
    for name, text in texts.items():
        try:
            content = json.loads(text)
        except ValueError:
            found.append(Evaluation([_kind(name), "cannot be read", *[""] * (len(HEADS) - 3), name], text))
            continue
        if not isinstance(content, dict):
            continue
        kept = section_of(content, "protocol").get("kept_as")
        if kept == name or not isinstance(kept, str) or texts.get(kept) != text:
            found.append(Evaluation([*_cells(name, content), name], text))
    return found


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
    """The checkpoint and the layer, where they are not the last ones."""
    layer, checkpoint = section_of(protocol, "features").get("layer", -1), protocol.get("checkpoint", "last")
    said = [f"layer {layer}"] * (layer != -1) + [str(checkpoint)] * (checkpoint != "last")
    return f" ({', '.join(said)})" if said else ""


def _result(content: Mapping[str, Any], network: str) -> str:
    """What a network reached; "" where the result has no such number."""
    best, shares = section_of(section_of(content, "best"), network), section_of(content, "fractions")
    found = {
        "linear": section_of(content, "linear").get(network),
        "kNN": section_of(content, "knn").get(network),
        **{f"linear at {percent(share)}": section_of(shares, share).get(network) for share in shares},
        **{
            f"{kind} at layer {section_of(best, kind).get('layer')}": section_of(best, kind).get("test")
            for kind in best
        },
    }
    said = [f"{name} {value:.1f}" for name, value in found.items() if _is_number(value)]
    if not said and network == "top1":
        said = [
            f"{word} " + (f"{content[key]:.1f}" if _is_number(content[key]) else "–")
            for key, word in HEADLINES.items()
            if key in content and (content[key] is None or _is_number(content[key]))
        ][:1]
    if not said and _is_number(content.get(network)):
        said = [f"{content[network]:.1f}"]
    return ", ".join(said)


def percent(share: str) -> str:
    """ "0.01" -> "1 % of the labels"."""
    try:
        return f"{100 * float(share):g} % of the labels"
    except ValueError:
        return share


def _numbers(content: Mapping[str, Any]) -> str:
    """The first numbers of a result that is none of ours."""
    return ", ".join([f"{key} {number(value)}" for key, value in content.items() if _is_number(value)][:SHOWN])


def _images(content: Mapping[str, Any], protocol: Mapping[str, Any]) -> str:
    """How many were learned from, tested on, and could not be used."""
    counts, images = section_of(protocol, "pictures"), section_of(protocol, "images")
    train = counts.get("train", images.get("train", protocol.get("images")))
    test = counts.get("test", images.get("val", content.get("images")))
    bad = section_of(counts, "bad")
    lost = {role: len(lines) if isinstance(lines, list) else lines for role, lines in bad.items()}
    lost = lost or {"test": content.get("bad_images")}
    said = [f"{number(train)} to learn from"] * _is_number(train) + [f"{number(test)} tested"] * _is_number(test)
    said += [f"{number(count)} of {role} unusable" for role, count in lost.items() if _is_number(count) and count]
    return ", ".join(said)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def section_of(content: Any, key: str) -> Mapping[str, Any]:
    """A part that is a mapping; {} where it is not there, or something else."""
    value = content.get(key) if isinstance(content, Mapping) else None
    return value if isinstance(value, Mapping) else {}


__all__ = ["HEADS", "Evaluation", "evaluations", "percent", "section_of"]
