"""MaskFeat: Masked Feature Prediction for Self-Supervised Visual Pre-Training (Wei et al., arXiv 2112.09133)."""

from remask.backbones import Backbone
from remask.backbones.masked_input import TokensReplaced
from remask.distances import squared
from remask.heads import Linear
from remask.masking import Masking
from remask.masking.scores import Blocks
from remask.method import Branch, Method
from remask.methods.defaults import hog_of, masking_of
from remask.methods.initial import Start, initialise
from remask.targets import Target


def maskfeat(
    backbone: Backbone, masking: Masking | float = 0.4, target: Target | None = None, start: Start = "published"
) -> Method:
    """f replaces the masked tokens; one linear layer after the final norm predicts their HOG; squared; masked.

    As published: blocks at ratio .4 on a ViT with learned positions.
    masking   a `Masking`, or the ratio of a block-wise one
    target    HOG in MaskFeat's flavour unless given
    """
    target = target or hog_of(backbone, flavour="sobel", norm="l2")
    head = Linear(backbone.width, target.width)
    masking = masking_of(masking, score=Blocks(), count="maskfeat")
    method = Method(backbone, masking, [Branch("masked", head, target, squared, "masked")], TokensReplaced())
    initialise(method, start=start)
    return method
