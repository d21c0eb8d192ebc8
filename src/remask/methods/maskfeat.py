"""MaskFeat: Masked Feature Prediction for Self-Supervised Visual Pre-Training (Wei et al., arXiv 2112.09133)."""

from remask.backbones import Backbone
from remask.distances import squared
from remask.heads import Linear
from remask.masking import Masking
from remask.method import Branch, Method
from remask.methods.initial import Start, initialise
from remask.targets import Target


def maskfeat(backbone: Backbone, masking: Masking, target: Target, start: Start = "published") -> Method:
    """f replaces the masked tokens; one linear layer after the final norm predicts their HOG; squared; masked.

    As published: blocks at ratio .4 on a ViT with learned positions.
    """
    head = Linear(backbone.width, target.width)
    method = Method(backbone, masking, [Branch("masked", head, target, squared, "masked")], replace="tokens")
    initialise(method, start=start)
    return method
