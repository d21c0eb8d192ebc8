"""SimMIM: A Simple Framework for Masked Image Modeling (Xie et al., arXiv 2111.09886)."""

from remask.backbones import Backbone
from remask.distances import l1
from remask.heads import Linear
from remask.masking import Masking
from remask.method import Branch, Method
from remask.methods.initial import STD, Start, initialise
from remask.targets import Target


def simmim(backbone: Backbone, masking: Masking, target: Target, start: Start = "published") -> Method:
    """f replaces the masked tokens; one linear layer predicts their targets (raw pixels); l1; masked.

    As published: random cells of 32 px at ratio .6 on a BEiT-style ViT or a Swin.
    # official: the sum over pixels / (their number + 1e-5); here the mean, which differs by 1e-9 of it
    """
    head = Linear(backbone.width, target.width)
    method = Method(backbone, masking, [Branch("masked", head, target, l1, "masked")], replace="tokens")
    initialise(method, bound=STD, heads=False, rescale=True, start=start)
    return method
