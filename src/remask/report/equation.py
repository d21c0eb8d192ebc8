"""The equation of a method with its names filled in, as `remask show` and the report print it."""

from functools import partial

from remask.backbones import Backbone
from remask.distances import Distance
from remask.masking import Blocks, Masking
from remask.method import Branch, Method
from remask.types import Size


def equation(method: Method, size: Size) -> str:
    """A line per branch of L(x), then what f, v and x are; counts are those of images of `size` pixels."""
    counts = method.masking.counts(method.backbone.grid(size))
    tokens = {"masked": counts.hidden, "visible": counts.tokens - counts.hidden}
    patch = method.backbone.patch
    terms = [_term(branch, method.masking.views, tokens[branch.region]) for branch in method.branches]
    where = [
        f"f  {_backbone(method.backbone, method.replace)}",
        f"v  {_views(method.masking, counts.hidden, counts.predicted, counts.tokens)}",
        f"x  images of {size[0]}×{size[1]} px, {counts.tokens} tokens of {patch[0]}×{patch[1]} px",
    ]
    return "\n".join(["L(x) = " + "\n     + ".join(terms), *where])


def _term(branch: Branch, views: int, tokens: int) -> str:
    over = f"{views} views, {tokens} {branch.region} tokens each," if views > 1 else f"{tokens} {branch.region} tokens"
    depth = "f(x)" if branch.layer == -1 else f"f(x) at block {branch.layer}"
    head, target = branch.head.describe(), branch.target.describe()
    return f"{branch.weight:g} · mean over {over} of {distance_name(branch.distance)}( {head} of {depth} ; {target} )"


def distance_name(distance: Distance) -> str:
    """The field's word for a distance, with its parameters."""
    if isinstance(distance, partial):
        parameters = ", ".join(f"{'β' if key == 'beta' else key}={value:g}" for key, value in distance.keywords.items())
        return f"{distance_name(distance.func)} {parameters} "
    return str(getattr(distance, "__name__", distance)).replace("_", "-")


def _backbone(backbone: Backbone, replace: str | None) -> str:
    does = "filled with a learned token" if replace else "dropped"
    return f"{type(backbone).__name__}, width {backbone.width}, {backbone.depth} blocks, masked tokens {does}"


def _views(masking: Masking, hidden: int, predicted: float, tokens: int) -> str:
    blocks = isinstance(masking.score, Blocks)
    pattern = (
        "block-wise" if blocks else f"random {masking.cell}×{masking.cell} cells" if masking.cell > 1 else "random"
    )
    one = f"{pattern} masking of {hidden / tokens:.1%} (m_corr)"
    if masking.views == 1:
        return one
    kind = "independent" if masking.prediction is None else "disjoint"
    return f"{masking.views} {kind} views, {one}, together {predicted / tokens:.1%} (m_pred)"
