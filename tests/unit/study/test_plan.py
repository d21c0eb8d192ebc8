from pathlib import Path
from typing import Any

import pytest

from remask.errors import UserError
from remask.recipe.write import literal
from remask.study.budget import in_epochs
from remask.study.cells import Cell, Place, Size, cells, digest, recipe_of, settings_of, train_arguments
from remask.study.plan import Study, load_study, needs, order

STUDIES = sorted((Path(__file__).parents[3] / "studies").glob("*.toml"))
PROBE = {"data": "digits:train", "val": "digits:val"}
BASE: dict[str, Any] = {
    "title": "Two methods",
    "data": "digits:train",
    "seeds": [0, 1],
    "budget": {"images": 300},
    "probe": PROBE,
    "rows": {"mae": {"recipe": "mae-vit-micro-cifar"}, "dmjd": {"recipe": "dmjd-vit-micro-cifar"}},
}


def table(values: dict[str, Any]) -> str:
    """As a file's text; tables inside are written inline."""
    return "\n".join(f"{key} = {literal(value).replace('None', '0')}" for key, value in values.items())


def written(folder: Path, **changes: Any) -> Path:
    file = folder / "two.toml"
    content = {key: value for key, value in {**BASE, **changes}.items() if value is not None}
    file.write_text(table(content))
    return file


def study_of(folder: Path, **changes: Any) -> Study:
    return load_study(written(folder, **changes))


def cell_of(study: Study, name: str, seed: int = 0, folder: Path = Path("somewhere")) -> Cell:
    return Cell(study, Place(folder / "two.toml", Path("runs")), name, seed)


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_shipped_studies_load_and_every_row_resolves(file: Path) -> None:
    study = load_study(file)
    place = Place(file, Path("runs"))
    assert study.question
    found = list(cells(study, place))
    assert len(found) == sum(len(row.seeds or study.seeds) for row in study.rows.values())
    for cell in found:
        assert len(digest(settings_of(cell, Size(1), dict.fromkeys(needs(cell.row), "x")))) == 16


MISTAKES = {
    "no title": ({"title": None}, "title is missing: One line: what is compared."),
    "a key of nobody": ({"rows": {"mae": {"recpie": "x"}}}, "unknown key rows.mae.recpie; did you mean recipe?"),
    "two budgets": ({"budget": {"images": 3, "ete": 2.0}}, "budget: set one of epochs, images, ete and core_minutes"),
    "no budget": ({"budget": {}}, "budget: set one of"),
    "nothing for it": ({"budget": {"images": 0}}, "budget.images: "),
    "no seed": ({"seeds": []}, "seeds: "),
    "a claim on no row": (
        {"claims": [{"text": "it is better", "first": "mae", "second": "simmim"}]},
        "simmim is no row: there are mae, dmjd",
    ),
    "a claim without words": (
        {"claims": [{"first": "mae", "second": "dmjd"}]},
        "claims.0.text is missing: The claim in words.",
    ),
    "a pair of no row": ({"compare": [["mae", "simmim"]]}, "simmim is no row: there are mae, dmjd"),
    "no probe": ({"probe": None}, "[probe] is missing, and row mae has no other test"),
    "a task without a start": ({"rows": {"a": {"verb": "finetune"}}}, "rows.a: a row of verb finetune needs start"),
    "a test set of pre-training": ({"rows": {"a": {"val": "digits"}}}, "rows.a: val is for finetune, segment"),
    "a row that starts from itself": ({"rows": {"a": {"start": "row:a"}}}, "rows need each other in a circle: a"),
    "no such start": ({"rows": {"a": {"verb": "finetune", "start": "row:b"}}}, "b is no row: there are a"),
    "a circle": (
        {"rows": {n: {"teachers": [f"run:row:{m}"]} for n, m in (("a", "b"), ("b", "a"))}},
        "rows need each other in a circle: a, b",
    ),
    "a seed that its start lacks": (
        {"rows": {"a": {"seeds": [0]}, "b": {"verb": "finetune", "start": "row:a"}}}, "b needs row a with seed 1 too",
    ),
    "a name that is no file's": ({"rows": {"a/b": {}}}, "rows.a/b"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "telling"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_one_line(changes: dict[str, Any], telling: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        study_of(tmp_path, **changes)
    assert telling in str(caught.value)
    assert str(caught.value).startswith(f"study {tmp_path}/two.toml: ")
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"study .*absent.toml does not exist"):
        load_study(tmp_path / "absent.toml")
    (tmp_path / "x.toml").write_text("title = ")
    with pytest.raises(UserError, match=r"x\.toml is not valid TOML: "):
        load_study(tmp_path / "x.toml")


def test_rows_come_after_those_they_need(tmp_path: Path) -> None:
    rows = {
        "tuned": {"verb": "finetune", "start": "row:mae", "val": "digits:val"},
        "taught": {"recipe": "moma-vit-micro-cifar", "teachers": ["run:row:mae,layer=1", "torchvision:mobilenet_v2"]},
        "refined": {"recipe": "refiner-vit-micro-cifar", "start": "row:mae"},
        "mae": {"recipe": "mae-vit-micro-cifar"},
    }
    study = study_of(tmp_path, rows=rows)
    assert order(study) == ["mae", "tuned", "taught", "refined"]
    place = Place(tmp_path / "two.toml", tmp_path / "runs")
    assert [cell.run for cell in cells(study, place)] == [f"{n}-seed{s}" for s in (0, 1) for n in order(study)]
    runs = {"mae": tmp_path / "runs" / "mae-seed0-1234"}
    tuned = train_arguments(cell_of(study, "tuned"), Size(3), runs)
    assert tuned[:2] == ["finetune", f"{tmp_path}/runs/mae-seed0-1234"]
    refined = cell_of(study, "refined")
    assert f"backbone.weights=run:{tmp_path}/runs/mae-seed0-1234" in train_arguments(refined, Size(3), runs)
    assert recipe_of(refined).backbone.weights == "run:row:mae", "which no folder's name changes"
    taught = train_arguments(cell_of(study, "taught", 1), Size(3, 50), runs)
    assert f"run:{tmp_path}/runs/mae-seed0-1234,layer=1" in taught
    assert taught[-6:] == ["--epochs", "3", "--limit", "50", "--seed", "1"]


def test_a_digest_is_of_what_decides_the_result(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    size = Size(2, 150)
    own = digest(settings_of(cell_of(study, "mae"), size, {}))
    assert own == digest(settings_of(cell_of(study_of(tmp_path, title="Another"), "mae"), size, {}))
    labelled = study_of(tmp_path, rows={"mae": {"recipe": "mae-vit-micro-cifar", "label": "MAE"}})
    assert own == digest(settings_of(cell_of(labelled, "mae"), size, {}))
    others = [
        settings_of(cell_of(study, "mae", seed=1), size, {}),
        settings_of(cell_of(study, "mae"), Size(2, 151), {}),
        settings_of(cell_of(study, "mae"), size, {"teacher": "ffff"}),
        settings_of(cell_of(study_of(tmp_path, set={"optim.base_lr": 1e-3}), "mae"), size, {}),
        settings_of(cell_of(study_of(tmp_path, probe={**PROBE, "limit": 10}), "mae"), size, {}),
    ]
    assert len({own, *map(digest, others)}) == 6


@pytest.mark.parametrize(("images", "count", "size"), [
    (300, 1000, (1, 300)), (1000, 1000, (1, None)), (1001, 1000, (2, 500)), (2000, 1000, (2, None)), (1, 1, (1, None)),
    (2999, 1000, (3, 999)),
])  # fmt: skip
def test_budgets_are_whole_epochs(images: int, count: int, size: tuple[int, int | None]) -> None:
    found = in_epochs(images, count, "row")
    assert tuple(found) == size
    assert images - found.epochs < found.epochs * (found.limit or count) <= images


def test_a_budget_below_an_image() -> None:
    with pytest.raises(UserError, match="row a: its budget is less than one image"):
        in_epochs(0, 10, "a")


def test_a_digest_is_the_same_from_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.toml").write_text('extends = "mae-vit-micro-cifar"\n')
    cell = cell_of(study_of(tmp_path, rows={"mae": {"recipe": "mine.toml"}}), "mae", folder=tmp_path)
    digests = set()
    for folder in (tmp_path, Path("/"), Path.cwd()):
        monkeypatch.chdir(folder)
        digests.add(digest(settings_of(cell, Size(1), {})))
    assert len(digests) == 1
