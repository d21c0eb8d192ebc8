"""evaluation/average_precision.py: equal to pycocotools on perturbed truth, synthetic and real, and to hand counts."""

import contextlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Generator, Tensor, nn

from remask.downstream.detect.average_precision import average_precision, coco_results, detections
from remask.downstream.detect.coco import CocoSource, decode_mask, encode_mask, open_coco
from remask.downstream.detect.detector import Detector

pytest.importorskip("faster_coco_eval")
KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def of_pycocotools(truth: dict[str, Any], results: list[dict[str, Any]], kind: str) -> dict[str, float]:
    coco, cocoeval = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    leave = "bbox" if kind == "segm" else "segmentation"
    with contextlib.redirect_stdout(io.StringIO()):
        known = coco.COCO()
        known.dataset = json.loads(json.dumps(truth))
        known.createIndex()
        found = known.loadRes([{k: v for k, v in result.items() if k != leave} for result in results])
        counted = cocoeval.COCOeval(known, found, kind)
        counted.evaluate()
        counted.accumulate()
        counted.summarize()
    return dict(zip(KEYS, counted.stats[:6].tolist(), strict=True))


def rectangles(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.round().int().tolist(), strict=True):
        mask[y0:y1, x0:x1] = True
    return masks


def synthetic() -> dict[str, Any]:
    """30 pictures of rectangles small, medium and large, of 4 classes with gaps in their ids; a tenth are crowds."""
    g, size = Generator().manual_seed(0), (150, 200)
    annotations = []
    for image in range(30):
        for _ in range(int(torch.randint(0, 6, (), generator=g))):
            corner = torch.rand(2, generator=g) * torch.tensor([150.0, 100.0])
            extent = 6 + torch.rand(2, generator=g) ** 2 * 140
            box = torch.cat([corner, torch.minimum(corner + extent, torch.tensor([200.0, 150.0]))])
            mask = rectangles(box[None], size)[0]
            annotations.append({
                "id": len(annotations) + 1, "image_id": image + 1, "area": float(mask.sum()),
                "category_id": (1, 3, 18, 90)[int(torch.randint(4, (), generator=g))],
                "bbox": [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()],
                "segmentation": encode_mask(mask.to(torch.uint8)),
                "iscrowd": int(torch.rand((), generator=g) < 0.1),
            })  # fmt: skip
    images = [{"id": i + 1, "height": size[0], "width": size[1], "file_name": f"{i}.png"} for i in range(30)]
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": f"c{i}"} for i in (1, 3, 18, 90)],
    }


def perturbed(truth: dict[str, Any], seed: int = 0) -> list[dict[str, Any]]:
    """Detections near the truth: moved, some missed, some twice, some of another class; with random scores."""
    g = Generator().manual_seed(seed)
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    ids, results = [category["id"] for category in truth["categories"]], []
    for a in truth["annotations"]:
        for _ in range(int(torch.randint(0, 3, (), generator=g))):
            size = sizes[a["image_id"]]
            moved = decode_mask(a["segmentation"], size)
            shift = (torch.randn(2, generator=g) * 0.1 * torch.tensor(a["bbox"][2:])).round().int().tolist()
            moved = moved.roll((shift[1], shift[0]), (0, 1))
            noise = 1 + 0.1 * torch.randn(4, generator=g).double()
            category = (
                a["category_id"]
                if torch.rand((), generator=g) < 0.8
                else ids[int(torch.randint(len(ids), (), generator=g))]
            )
            results.append({
                "image_id": a["image_id"], "category_id": category, "score": float(torch.rand((), generator=g)),
                "bbox": (torch.tensor(a["bbox"], dtype=torch.float64) * noise).tolist(),
                "segmentation": encode_mask(moved),
            })  # fmt: skip
    return results


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("seed", [0, 1])
def test_equal_to_pycocotools(kind: str, seed: int) -> None:
    truth = synthetic()
    results = perturbed(truth, seed)
    before = json.dumps([truth, results])
    ours, theirs = average_precision(truth, results, [kind])[kind], of_pycocotools(truth, results, kind)
    assert ours == pytest.approx(theirs, abs=1e-6)
    assert 0.05 < ours["AP"] < ours["AP50"] < 1
    assert json.dumps([truth, results]) == before


@pytest.fixture(scope="module")
def coco120(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    archive = shared / "data" / "coco120" / "coco120.tar"
    if not archive.is_file():
        pytest.skip("coco120 is absent")
    folder = tmp_path_factory.mktemp("coco")
    with tarfile.open(archive) as tar:
        wanted = [m for m in tar if "val2017" in m.name and ("/images/" in m.name or "instances" in m.name)]
        tar.extractall(folder, wanted, filter="data")
    return folder / "coco120"


def of_val(folder: Path) -> CocoSource:
    return open_coco(str(folder / "images" / "val2017"), str(folder / "annotations" / "instances_val2017.json"))


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_equal_to_pycocotools_on_coco(coco120: Path, kind: str) -> None:
    source = of_val(coco120)
    assert (len(source), len(source.classes), source.masks) == (60, 80, True)
    truth = source.truth()
    results = perturbed(truth)
    ours, theirs = average_precision(truth, results, [kind])[kind], of_pycocotools(truth, results, kind)
    assert ours == pytest.approx(theirs, abs=1e-6)
    assert 0.05 < ours["AP"] < 1
    found = average_precision(truth, results, ("bbox",), per_class=True)["bbox"]["per_class"]
    counted = [value for value in found.values() if value is not None]
    assert len(found) == 80
    assert sum(counted) / len(counted) == pytest.approx(average_precision(truth, results, ("bbox",))["bbox"]["AP"])


def test_the_truth_itself_scores_one(coco120: Path) -> None:
    """Through targets and results: what a perfect detector finds, class by class and pixel by pixel."""
    source = of_val(coco120)
    results = []
    for i in range(len(source)):
        target = source.target(i)
        found = {"boxes": target["boxes"], "labels": target["labels"], "masks": target["masks"] > 0}
        scores = torch.full((len(target["labels"]),), 0.5)
        results += coco_results({**found, "scores": scores}, target["image_id"], source.categories)
    scores_of = average_precision(source.truth(), results)
    for kind in ("bbox", "segm"):
        assert scores_of[kind] == pytest.approx(dict.fromkeys(KEYS, 1.0), abs=1e-3)


def test_nothing_found_and_nothing_there() -> None:
    truth = synthetic()
    nothing = average_precision(truth, [])
    assert set(nothing) == {"bbox", "segm"}
    assert nothing["bbox"] == dict.fromkeys(KEYS, 0.0)
    empty = average_precision({**truth, "annotations": []}, perturbed(truth))
    assert set(empty["segm"].values()) == {None}


class Oracle(Detector):
    """Finds what it is told of each picture, on the image that it sees."""

    def __init__(self, told: list[dict[str, Tensor]]) -> None:
        nn.Module.__init__(self)
        self.told, self.weight = told, nn.Parameter(torch.zeros(1))

    def detect(self, images: Tensor) -> list[dict[str, Tensor]]:
        return [self.told.pop(0) for _ in images]


class Batch(NamedTuple):
    images: Tensor
    labels: list[dict[str, Any]]


def test_results_are_on_the_original_pictures() -> None:
    labels = [
        {"image_id": 5, "size": (100, 200), "shown": (32, 64)},
        {"image_id": 6, "size": (64, 64), "shown": (64, 64)},
    ]
    box, ones = torch.tensor([[16.0, 8.0, 32.0, 24.0]]), torch.ones(1, 1, 28, 28)
    told = [{"boxes": box, "labels": torch.tensor([k]), "scores": torch.tensor([0.5]), "masks": ones} for k in (1, 2)]
    heard: list[tuple[int, int]] = []
    results = detections(
        Oracle(told), [Batch(torch.zeros(2, 3, 64, 64, dtype=torch.uint8), labels)], [7, 90],
        progress=lambda done, total, words: heard.append((done, total)), total=2,
    )  # fmt: skip
    assert [(r["image_id"], r["category_id"], r["bbox"], r["score"]) for r in results] == [
        (5, 7, [50, 25, 50, 50], 0.5),
        (6, 90, [16, 8, 16, 16], 0.5),
    ]
    assert [r["segmentation"]["size"] for r in results] == [[100, 200], [64, 64]]
    assert heard == [(2, 2)]
    json.dumps(results)
