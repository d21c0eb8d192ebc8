"""[distill]: the frozen teachers of DMAE and MOMA. [average]: the student's own moving average as teacher."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from remask.recipe.values import Deviation, Section, Size, pair


class TeacherSection(Section):
    """One frozen teacher. In flags: --teacher "mae:FILE,heads=16,layer=17"."""

    source: str = Field(
        min_length=1,
        description="mae:FILE, mocov3:FILE, dino:FILE, dmae:FILE, dmjd:FILE, run:RUN, timm:NAME, clip:NAME, …",
    )
    heads: int | None = Field(default=None, ge=1, description="Attention heads, where weights do not tell them.")
    layer: int | None = Field(
        default=None, ge=-1, description="Block that is read, from 0; unset = 3/4 of the depth (dmae), the last (moma)."
    )
    weight: float | None = Field(default=None, gt=0, description="λ; unset = 1 (dmae), 1 / number of teachers (moma).")
    size: Size | None = Field(default=None, description="Pixels to which it has images resized; unset = the student's.")
    final_norm: bool = Field(default=False, description="Read behind the teacher's own last norm.")
    weights: str | None = Field(default=None, min_length=1, description="Local weights of a timm:, clip: or tae: one.")
    normalise: Literal["imagenet", "half", "clip"] | None = Field(
        default=None, description="How its pictures were normalised, where its kind does not say: imagenet, half, clip."
    )
    mean: list[float] | None = Field(default=None, description="The same in numbers: mean per channel, in 0..1.")
    std: list[Deviation] | None = Field(default=None, description="And deviation per channel.")

    def stated(self) -> list[str]:
        """Dotted names of the keys that the recipe sets, in the order of this section."""
        return [f"distill.teachers.{key}" for key in type(self).model_fields if key in self.model_fields_set]

    @model_validator(mode="after")
    def _fits(self) -> "TeacherSection":
        if (self.mean is None) != (self.std is None):
            one, other = ("mean", "std") if self.std is None else ("std", "mean")
            raise ValueError(f"{one} of {self.source} is there without {other}: give both, or normalise")
        if self.normalise and self.mean is not None:
            raise ValueError(f"normalise of {self.source} stands beside mean and std: give one or the other")
        return self


class DistillSection(Section):
    """Teachers, and the student's side of the alignment."""

    teachers: list[TeacherSection] = Field(min_length=1, description="The frozen networks.")
    layers: list[Annotated[int, Field(ge=-1)]] | None = Field(
        default=None, description="Student's block for each teacher; unset = 3/4 of the depth (dmae), the end (moma)."
    )
    head: Literal["linear", "mlp"] = Field(default="linear", description="From the student's width to a teacher's.")
    learned: bool = Field(default=False, description="Train the teachers' weights (moma).")
    beta: float = Field(default=1.0, gt=0, description="Where moma's smooth-l1 turns from square to line.")
    jitter: float = Field(
        default=0.0, ge=0, le=1, description="Strength of colour jitter on what the student sees (moma); 0 = none."
    )
    cache: str | None = Field(
        default=None, min_length=1, description="Folder that keeps the teachers' features of fixed crops (moma)."
    )

    @model_validator(mode="before")
    @classmethod
    def _sources(cls, value: Any) -> Any:
        """Accept a teacher that is only a source, as text."""
        if isinstance(value, dict) and isinstance(teachers := value.get("teachers"), list):
            return {**value, "teachers": [{"source": t} if isinstance(t, str) else t for t in teachers]}
        return value

    @model_validator(mode="after")
    def _fits(self) -> "DistillSection":
        if self.layers and len(self.layers) != len(self.teachers):
            raise ValueError(f"distill.layers has {len(self.layers)} blocks for {len(self.teachers)} teachers")
        return self


Decay = Annotated[float, Field(ge=0, le=1)]


class AverageSection(Section):
    """The student's moving average as teacher: average ← τ · average + (1 - τ) · student after every step."""

    decay: Annotated[tuple[Decay, Decay], BeforeValidator(pair)] = Field(
        default=(0.9998, 0.99999), description="τ at the start, and after the warm-up."
    )
    warmup: float = Field(default=1.0, ge=0, le=1, description="Share of the training over which τ rises, linearly.")

    @field_validator("decay")
    @classmethod
    def _follows(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] == 1:
            raise ValueError(f"{list(value)} would never follow: the first τ must be below 1, as in [0.99, 1.0]")
        return value


__all__ = ["AverageSection", "DistillSection", "TeacherSection"]
