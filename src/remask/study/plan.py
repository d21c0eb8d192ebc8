"""The file of a study: rows that are compared, their seeds, how each is tested, and what each may cost."""

import difflib
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from remask.errors import UserError
from remask.files.escaping import printable
from remask.files.text import read_toml
from remask.recipe.values import Section

Verb = Literal["pretrain", "finetune", "segment", "detect"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]
"""Of a row: part of a file's name."""
ROW = "row:"
"""Before the name of a row where a run is meant: the run of that row with the same seed."""


CONTROLS = {"untrained": "untrained", "pixels": "raw pixels"}
"""What every pre-trained network is compared with, and its words."""


class Budget(Section):
    """What a row's pre-training may cost: exactly one of the keys.

    A budget that is not in epochs is made whole epochs of as few images as it takes, so that the schedule ends with it.
    """

    epochs: int | None = Field(default=None, ge=1, description="Passes over the images.")
    images: int | None = Field(default=None, ge=1, description="Images read, each in all its views.")
    ete: float | None = Field(default=None, gt=0, description="Effective epochs: views × epochs.")
    core_minutes: float | None = Field(
        default=None, gt=0, description="Minutes of one core, by a rehearsal of the row."
    )

    @model_validator(mode="after")
    def _one_key(self) -> "Budget":
        if len(self.model_dump(exclude_none=True)) != 1:
            raise ValueError("set one of epochs, images, ete and core_minutes")
        return self


class Probe(Section):
    """How every pre-trained network is tested, by `remask probe`."""

    data: str = Field(description="Labelled images that the probes learn on.")
    val: str = Field(description="Labelled images that they are tested on.")
    limit: int | None = Field(default=None, ge=1, description="The first N images of data only.")
    protocol: Literal["fast", "mae", "attentive"] = Field(default="fast", description="As remask probe --protocol.")
    shots: int = Field(default=10, ge=1, description="Labels a class in the few-label half of the fast probe.")
    image_size: str | None = Field(default=None, description="Pixels that networks are probed at; unset = their own.")


class Row(Section):
    """What is trained: a command of remask, its recipe, and what is changed of it."""

    label: str | None = Field(default=None, description="Its name in the table.")
    verb: Verb = Field(default="pretrain", description="pretrain, finetune, segment or detect.")
    recipe: str | None = Field(default=None, description="A recipe's name, or a TOML file beside the study.")
    method: str | None = Field(default=None, description="As --method of pretrain.")
    start: str | None = Field(default=None, description="What a row starts from: row:NAME, or a network.")
    untrained: bool = Field(default=False, description="A task's control: the same network with its first weights.")
    teachers: list[str] = Field(default=[], description="As --teacher of pretrain; run:row:NAME is another row's run.")
    data: str | None = Field(default=None, description="Other images than the study's.")
    val: str | None = Field(default=None, description="What a task is tested on.")
    masks: str | None = Field(default=None, description="Masks or annotations of data, for segment and detect.")
    val_masks: str | None = Field(default=None, description="Masks or annotations of val.")
    set: dict[str, Any] = Field(default={}, description="Recipe keys of this row, as {'optim.lr' = 1e-3}.")
    budget: Budget | None = Field(default=None, description="Another budget than the study's.")
    seeds: list[int] | None = Field(default=None, description="Other seeds than the study's.")

    @model_validator(mode="after")
    def _fits_its_verb(self) -> "Row":
        if self.verb == "pretrain":
            if wrong := [key for key in ("val", "masks", "val_masks") if getattr(self, key)]:
                raise ValueError(f"{wrong[0]} is for finetune, segment and detect, and this row pre-trains")
        elif not self.start:
            raise ValueError(
                f"a row of verb {self.verb} needs start: row:NAME, or a network such as untrained:vit_micro"
            )
        elif self.method or self.teachers:
            raise ValueError(f"method and teachers are of pre-training, and this row's verb is {self.verb}")
        return self


class Claim(Section):
    """What a study is to decide, written before it is run: one row minus another is more than `by` points."""

    text: str = Field(description="The claim in words.")
    first: str = Field(description="The row that is said to be ahead.")
    second: str = Field(description="The row it is compared with; untrained or pixels: the first row's own controls.")
    measure: str = Field(default="linear", description="linear, kNN, ..., as in the report.")
    by: float = Field(default=0.0, description="Points that the difference exceeds; negative: how much may be lost.")
    level: float = Field(default=0.95, gt=0, lt=1, description="Of the interval that decides.")


class Study(Section):
    """A comparison: what is asked, and the rows that answer it."""

    name: Name = Field(description="The stem of the file.")
    title: str = Field(description="One line: what is compared.")
    question: str = Field(default="", description="What the study is to decide, and how: written before it is run.")
    data: str | None = Field(default=None, description="Images of all rows, unless a row names others.")
    seeds: list[int] = Field(min_length=1, description="One run of each row for each.")
    budget: Budget = Field(description="What each row may cost.")
    probe: Probe | None = Field(default=None, description="How pre-trained rows are tested.")
    set: dict[str, Any] = Field(default={}, description="Recipe keys of all rows that pre-train.")
    compare: list[Annotated[list[str], Field(min_length=2, max_length=2)]] = Field(
        default=[], description="Pairs of rows: the first minus the second."
    )
    claims: list[Claim] = Field(default=[], description="What is decided by the intervals of the differences.")
    rows: dict[Name, Row] = Field(min_length=1, description="What is compared.")

    @model_validator(mode="after")
    def _names_are_rows(self) -> "Study":
        unknown = [name for pair in self.compare for name in pair if name not in self.rows]
        unknown += [name for row in self.rows.values() for name in needs(row) if name not in self.rows]
        unknown += [claim.first for claim in self.claims if claim.first not in self.rows]
        unknown += [claim.second for claim in self.claims if claim.second not in (*self.rows, *CONTROLS)]
        if unknown:
            raise ValueError(f"{unknown[0]} is no row: there are {', '.join(self.rows)}")
        for name, row in self.rows.items():
            if (
                row.verb == "pretrain"
                and not self.probe
                and not any(name in needs(other) for other in self.rows.values())
            ):
                raise ValueError(f"[probe] is missing, and row {name} has no other test")
            for needed in needs(row):
                if missing := set(row.seeds or self.seeds) - set(self.rows[needed].seeds or self.seeds):
                    raise ValueError(f"row {name} needs row {needed} with seed {min(missing)} too")
        order(self)
        return self


def needs(row: Row) -> list[str]:
    """The rows whose runs a row starts from or learns from."""
    sources = [row.start or "", *(teacher.removeprefix("run:") for teacher in row.teachers)]
    return [source.removeprefix(ROW).partition(",")[0] for source in sources if source.startswith(ROW)]


def order(study: Study) -> list[str]:
    """The rows in their order, each after those that it needs. Raises ValueError where they need each other."""
    done: list[str] = []
    while len(done) < len(study.rows):
        ready = [name for name, row in study.rows.items() if name not in done and set(needs(row)) <= set(done)]
        if not ready:
            raise ValueError(
                f"rows need each other in a circle: {', '.join(name for name in study.rows if name not in done)}"
            )
        done.append(ready[0])
    return done


def load_study(path: Path) -> Study:
    """The study of a TOML file. Raises UserError, in one line that names the key: no such file, not TOML, a mistake."""
    try:
        values = read_toml(path, f"study {printable(path)}")
    except FileNotFoundError:
        raise UserError(f"study {printable(path)} does not exist") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"study {printable(path)} is not valid TOML: {error}") from None
    except OSError as error:
        raise UserError(f"study {printable(path)} cannot be read: {error.strerror}") from None
    try:
        return Study.model_validate({"name": path.stem, **values})
    except ValidationError as error:
        raise UserError(f"study {printable(path)}: {_problem(error)}") from None


def _problem(error: ValidationError) -> str:
    """The first mistake, by the key where it is."""
    first = error.errors(include_url=False)[0]
    key, kind = ".".join(map(str, first["loc"])), first["type"]
    model: Any = {"budget": Budget, "probe": Probe, "rows": Row, "claims": Claim}.get(
        str(first["loc"][0]) if first["loc"] else "", Study
    )
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(first["loc"][-1]), model.model_fields, 1)
        return f"unknown key {key}; " + (
            f"did you mean {near[0]}?" if near else f"known: {', '.join(model.model_fields)}"
        )
    if kind == "missing":
        return f"{key} is missing: {model.model_fields[str(first['loc'][-1])].description}"
    if kind == "value_error":
        return f"{key}: {first['ctx']['error']}" if key else str(first["ctx"]["error"])
    return f"{key}: {first['msg']}, not {first['input']!r}"


__all__ = ["CONTROLS", "ROW", "Budget", "Claim", "Probe", "Row", "Study", "Verb", "load_study", "needs", "order"]
