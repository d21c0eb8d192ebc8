"""BEiT: BERT Pre-Training of Image Transformers (Bao et al., arXiv 2106.08254)."""

from remask.backbones import Backbone
from remask.backbones.masked_input import TokensReplaced
from remask.distances import cross_entropy
from remask.heads import Linear
from remask.masking import Masking
from remask.masking.scores import Blocks
from remask.method import Branch, Method
from remask.methods.defaults import masking_of
from remask.methods.initial import STD, Start, initialise
from remask.targets import Target


def beit(backbone: Backbone, masking: Masking | float, target: Target, start: Start = "published") -> Method:
    """f replaces the masked tokens; one linear layer after the final norm scores a vocabulary; cross-entropy; masked.

    The target is each token's id, one of target.width. As published: blocks at ratio .4 on a BEiT-style ViT.
    masking   a `Masking`, or the ratio of a block-wise one
    """
    head = Linear(backbone.width, target.width)
    branches = [Branch("masked", head, target, cross_entropy, "masked")]
    method = Method(backbone, masking_of(masking, score=Blocks()), branches, TokensReplaced())
    initialise(method, bound=STD, rescale=True, start=start)
    return method
