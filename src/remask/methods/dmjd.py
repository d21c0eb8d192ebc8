"""DMJD: disjoint masking and joint distillation (Ma et al., arXiv 2301.00230), as plug-ins to any method.

Both are functions Method -> Method: no method knows of them, and they know no method.
"""

from dataclasses import replace

from remask.distances import smooth_l1_with
from remask.heads import Projector
from remask.method import Branch, Method
from remask.methods.defaults import hog_of
from remask.methods.mae import initialise
from remask.targets import Target


def dm(method: Method, views: int = 2, prediction: float | None = 1.0) -> Method:
    """Disjoint masking: K views of the same m_corr whose union predicts m_pred (Eq. 3). None: independent views."""
    return method.with_(masking=replace(method.masking, views=views, prediction=prediction))


def jd(
    method: Method,
    target: Target | None = None,
    width: int = 512,
    beta: float = 2.0,
    weight: float = 1.0,
    layers: int = 3,
) -> Method:
    """Joint distillation: a branch on the visible tokens that regresses a normalised target, smooth-l1.

    target   HOG, normalised per cell, unless given
    width, layers are the projector's, `beta` is that of smooth-l1, and `weight` the λ of the branch.
    """
    target = target or hog_of(method.backbone, method.mask_unit)
    cells = method.cells_per_token
    projector = Projector(method.backbone.width, target.width, width, layers=layers, cells_per_token=cells)
    projector.apply(initialise)
    # DMJD Eq. (5): visible tokens, each against its own target
    visible = Branch("visible", projector, target, smooth_l1_with(beta), "visible", weight)
    return method.with_(branches=[*method.branches, visible])
