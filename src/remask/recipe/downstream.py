"""Recipes of what comes after pre-training: fine-tuning, segmentation, detection. One schema each, shared sections."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from remask.recipe.runtime import RuntimeSection
from remask.recipe.sections import About
from remask.recipe.values import Heads, Pair, Pattern, PixelRange, Range, Section, Size

Drawn = Literal["stored", "upright"]
DRAWN = "What was drawn on where EXIF turns a picture and its size does not tell: the stored pixels, or upright ones."


class StartSection(Section):
    """The network that is trained on: where it comes from and how it is made to learn."""

    source: str | None = Field(
        default=None, min_length=1, description="run:RUN, mae:FILE, beit:FILE, timm:NAME, untrained:NAME, …"
    )
    heads: Heads | None = Field(
        default=None, description="Attention heads, where a file does not tell them; a list where stages differ."
    )
    normalise: Literal["imagenet", "half", "clip"] | None = Field(
        default=None, description="How pictures were normalised, where a file does not tell: imagenet, half or clip."
    )
    untrained: bool = Field(default=False, description="The same network with first weights: the control.")
    drop_path: float = Field(default=0.0, ge=0, lt=1, description="Stochastic depth at the last block.")
    checkpointing: bool = Field(default=False, description="Recompute blocks in backward: less memory, more time.")
    frozen: bool = Field(default=False, description="Train the head alone.")


class ImagesSection(Section):
    """Which pictures, at which size."""

    source: str | None = Field(default=None, description="Labelled pictures to learn from.")
    val: str | None = Field(default=None, description="Labelled pictures to test on; unset = a fifth of the source.")
    image_size: Size | None = Field(
        default=None, description='Pixels: 224, [96, 160] or "96x160" (height, width); unset = the network\'s.'
    )
    limit: int | None = Field(default=None, ge=1, description="Use the first N pictures of the source only.")
    exclude: list[Pattern] = Field(default=[], description="Names or paths in the source and in val to leave out.")
    range: PixelRange = Field(
        default="auto",
        description="Values that are black and white in pictures deeper than 8 bits: auto, full, byte or [low, high].",
    )
    flip: bool = Field(default=True, description="Mirror half of the pictures left to right.")


class ClassesData(ImagesSection):
    """Pictures of classes."""

    max_bad: float = Field(default=0.01, ge=0, le=1, description="Share of unusable pictures that stops the run.")
    share: float | None = Field(default=None, gt=0, le=1, description="Learn from this share of each class only.")
    crop_scale: Range = Field(default=(0.08, 1.0), description="Share of a picture's area that a random crop keeps.")
    crop_ratio: Range = Field(default=(3 / 4, 4 / 3), description="Width / height of a random crop.")
    crop_pct: float = Field(default=0.875, gt=0, le=1, description="Part of the shorter side that a test crop keeps.")


class MasksData(ImagesSection):
    """Pictures with a class for every pixel; image_size is that of a training crop."""

    max_bad: float = Field(default=0.01, ge=0, le=1, description="Share of unusable pairs that stops the run.")
    masks: str | None = Field(default=None, description="Masks of the source; unset = found by its layout.")
    val_masks: str | None = Field(default=None, description="Masks of val.")
    classes: int | None = Field(default=None, ge=2, description="Number of classes; unset = stated by the set.")
    ignore: int | None = Field(default=None, ge=0, le=255, description="The id in masks that is no class, beside 255.")
    reduce_zero: bool = Field(default=False, description="0 is no class (ADE20K); the others move down by one.")
    scale: Range = Field(default=(0.5, 2.0), description="Factors by which training pictures are resized.")
    photometric: bool = Field(default=True, description="Distort brightness, contrast, saturation and hue.")
    exif: Drawn | None = Field(default=None, description=DRAWN)


class BoxesData(ImagesSection):
    """Pictures with boxes and masks in COCO's JSON; image_size is that of a training crop."""

    annotations: str | None = Field(default=None, description="The JSON of the source.")
    val_annotations: str | None = Field(default=None, description="The JSON of val.")
    scale: Range = Field(default=(0.1, 2.0), description="Factors by which training pictures are resized (LSJ).")
    max_bad: float = Field(default=0.01, ge=0, le=1, description="Share of unusable pictures that stops the run.")
    skip_bad: bool = Field(
        default=False,
        description="Leave out annotations and pictures that cannot be used, instead of refusing the file.",
    )
    exif: Drawn | None = Field(default=None, description=DRAWN)


class FinetuneModel(StartSection):
    """Network and linear head."""

    pool: Literal["mean", "cls"] = Field(default="mean", description="What the head reads: mean of patches, or cls.")
    smoothing: float = Field(default=0.1, ge=0, lt=1, description="Label smoothing.")
    init_scale: float = Field(default=1e-3, gt=0, description="Factor of the head's first weights, of deviation .02.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout before the head.")


class SegmentModel(StartSection):
    """Network and dense head."""

    head: Literal["upernet", "linear"] = Field(default="upernet", description="UperNet, or one linear layer.")
    width: int = Field(default=512, ge=1, description="Channels of UperNet.")
    aux: float = Field(default=0.4, ge=0, description="Weight of the auxiliary FCN head; 0 = none.")
    norm: Literal["batch", "group"] = Field(default="batch", description="Of neck and head; group for small batches.")


class DetectModel(StartSection):
    """Network and Mask R-CNN."""

    width: int = Field(default=256, ge=1, description="Channels of the feature pyramid.")
    anchor: float | None = Field(
        default=None, gt=0, description="Side of an anchor in cells of its map; unset = fitted to the image size."
    )


class AugmentSection(Section):
    """What makes pictures harder while fine-tuning."""

    randaugment: str | None = Field(default=None, description='As timm writes it: "rand-m9-mstd0.5-inc1".')
    jitter: float = Field(default=0.0, ge=0, le=1, description="Strength of colour jitter; RandAugment replaces it.")
    erasing: float = Field(default=0.0, ge=0, le=1, description="Probability of erasing a rectangle.")
    mixup: float = Field(default=0.0, ge=0, description="α of mixup; 0 = off.")
    cutmix: float = Field(default=0.0, ge=0, description="α of CutMix; 0 = off.")
    mix_prob: float = Field(default=1.0, ge=0, le=1, description="Share of batches that are mixed.")
    switch_prob: float = Field(default=0.5, ge=0, le=1, description="Share of mixed batches that take CutMix.")


class LearnSection(Section):
    """How long, how fast, and with what decay through the depth."""

    epochs: int = Field(ge=1, description="Passes over the pictures.")
    warmup_epochs: float = Field(default=0.0, ge=0, description="Epochs in which the learning rate rises from 0.")
    batch_size: int = Field(ge=1, description="Pictures per step, over all devices.")
    base_lr: float | None = Field(default=None, gt=0, description="Learning rate per 256 pictures.")
    lr: float | None = Field(default=None, gt=0, description="Absolute learning rate; overrides base_lr.")
    min_lr: float = Field(default=0.0, ge=0, description="Learning rate at the end.")
    schedule: Literal["cosine", "poly", "steps"] = Field(default="cosine", description="How the rate falls.")
    power: float = Field(default=1.0, gt=0, description="Of the polynomial schedule.")
    drops: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        default=[0.889, 0.963], description='Shares of the run after which "steps" divides the rate by ten.'
    )
    layer_decay: float = Field(default=1.0, gt=0, le=1, description="Factor of the rate from block to block.")
    weight_decay: float = Field(default=0.05, ge=0, description="AdamW weight decay; none on biases and norms.")
    betas: Pair = Field(default=(0.9, 0.999), description="AdamW betas.")
    clip: float | None = Field(default=None, gt=0, description="Largest gradient norm; unset = no clipping.")
    max_skipped: int = Field(
        default=3, ge=0, description="Steps in a row, skipped as not finite, that stop the run; 0 = the first."
    )
    ema: float | None = Field(default=None, gt=0, lt=1, description="Decay of averaged weights, which are tested.")
    precision: Literal["auto", "fp32", "bf16"] = Field(default="auto", description="Numbers of forward and backward.")
    max_steps: int | None = Field(default=None, ge=1, description="End after N steps; the schedule stays as planned.")

    @model_validator(mode="after")
    def _fits(self) -> "LearnSection":
        if self.lr is None and self.base_lr is None:
            raise ValueError("optim.lr is missing: give it, or optim.base_lr, the rate per 256 pictures")
        if self.warmup_epochs > self.epochs:
            raise ValueError(
                f"optim.warmup_epochs {self.warmup_epochs:g} is more than optim.epochs {self.epochs}; lower it with "
                f"--set optim.warmup_epochs={self.epochs / 20:g}"
            )
        return self

    @property
    def peak(self) -> float:
        """The learning rate after warm-up."""
        return self.lr or (self.base_lr or 0.0) * self.batch_size / 256


class TestSection(Section):
    """When and how it is tested."""

    __test__ = False  # not for pytest
    every_epochs: int = Field(default=1, ge=1, description="Epochs between two tests.")


class WindowsTest(TestSection):
    """Segmentation slides a window over pictures larger than a crop."""

    stride: float = Field(default=2 / 3, gt=0, le=1, description="Step of the window, in windows.")
    flip: bool = Field(default=False, description="Average with the mirrored picture.")


class BoxesTest(TestSection):
    """What detection keeps."""

    score: float = Field(default=0.05, ge=0, lt=1, description="Least score of a detection.")
    detections: int = Field(default=100, ge=1, description="Most detections in a picture.")


class Downstream(About):
    """What all three have."""

    task: str = Field(description="finetune, segment or detect.")
    optim: LearnSection
    runtime: RuntimeSection = RuntimeSection()


class Finetune(Downstream):
    """Classification, every weight trained."""

    task: Literal["finetune"] = Field(description="finetune")
    data: ClassesData = ClassesData()
    model: FinetuneModel = FinetuneModel()
    augment: AugmentSection = AugmentSection()
    test: TestSection = TestSection()


class Segment(Downstream):
    """A class for every pixel."""

    task: Literal["segment"] = Field(description="segment")
    data: MasksData
    model: SegmentModel = SegmentModel()
    test: WindowsTest = WindowsTest()


class Detect(Downstream):
    """Boxes and instance masks."""

    task: Literal["detect"] = Field(description="detect")
    data: BoxesData
    model: DetectModel = DetectModel()
    test: BoxesTest = BoxesTest()


TASKS: dict[str, type[Downstream]] = {"finetune": Finetune, "segment": Segment, "detect": Detect}

__all__ = ["TASKS", "Detect", "Downstream", "Finetune", "Segment"]
