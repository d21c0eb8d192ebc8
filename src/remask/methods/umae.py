"""U-MAE: How Mask Matters: Towards Theoretical Understandings of Masked Autoencoders (Zhang et al., 2210.08344)."""

from typing import Literal

from remask.backbones import class_tokens
from remask.distances import uniformity
from remask.errors import UserError, setting
from remask.heads import Pooled
from remask.method import Branch, Method
from remask.targets.nothing import Nothing


def umae(method: Method, weight: float = 0.01, of: Literal["mean", "class"] = "mean") -> Method:
    """The uniformity term as a plug-in to any method: λ · mean over pairs of pictures of their squared cosine.

    A branch without a target, on what f makes of each masked view; with several views the pairs are of different
    pictures in the same view. Crops of one picture are different pictures here, as everywhere.
    weight   λ
    of       "mean" of a view's tokens, or its "class" token
    The loss is that of the whole batch of all processes: it is not cut into micro-batches.
    # official: the class token goes through the final norm a second time before it is compared; here it does not
    Raises UserError for the class token of a backbone that has none.
    """
    if any(branch.name == "uniformity" for branch in method.branches):
        raise UserError("the method has this term already: give it another weight in place of a second one")
    backbone = method.backbone
    if of == "class" and not backbone.prefix:
        cure = setting("set uniformity.of mean", 'give of="mean"')
        raise UserError(f"the backbone has no class token whose uniformity could be asked for: {cure}")
    name: Literal["mean", "class token"] = "mean" if of == "mean" else "class token"
    head = Pooled(backbone.width, backbone.width, name, class_tokens(backbone))
    branch = Branch("uniformity", head, Nothing(), uniformity, "pooled", weight)
    return method.with_(branches=[*method.branches, branch])
