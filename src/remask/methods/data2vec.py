"""data2vec 2.0: Efficient Self-supervised Learning with Contextualized Target Representations (arXiv 2212.07525)."""

from remask.backbones import Backbone, class_tokens
from remask.distances import squared
from remask.errors import UserError, setting
from remask.heads import ConvDecoder, Pooled
from remask.masking import Masking
from remask.masking.scores import InverseBlocks
from remask.method import Branch, Method, Region
from remask.methods.defaults import masking_of
from remask.methods.mae import initialise, initialise_tokens
from remask.targets import Target
from remask.targets.moving_average import MovingAverage


def data2vec(
    backbone: Backbone,
    masking: Masking | float = 0.8,
    target: Target | None = None,
    width: int = 768,
    depth: int = 6,
    kernel: int = 3,
    class_weight: float = 0.01,
) -> Method:
    """f drops the masked tokens; a decoder of convolutions predicts layers of f's moving average; squared; masked.

    As published: ratio .8 of inverse blocks, 16 independent views of an image (`dm(method, 16, None)`).
    masking        a `Masking`, or the ratio of inverse blocks of 3×3 patches
    target         the moving average, its last five sixths of blocks (10 of a ViT-B's 12), unless given
    width, depth, kernel are the decoder's
    class_weight   of a second branch: the class token predicts the mean of the target; 0 leaves it out
    # official: squared errors are summed and divided by √D; here averaged, which is √D times less. AdamW does not see
    # a constant factor, but a limit on the gradient's norm does: the recipes have the published 4 divided by √D.
    Raises UserError for a backbone without a class token, unless class_weight is 0.
    """
    target = target or MovingAverage(backbone, top=max(1, backbone.depth * 5 // 6))
    masking = masking_of(masking, score=InverseBlocks())
    region: Region = "masked" if masking.predicted == "all" else "predicted"
    decoder = ConvDecoder(backbone.width, target.width, width, depth, kernel, region=region)
    branches = [Branch("masked", decoder, target, squared, region)]
    if class_weight:
        if not backbone.prefix:
            name = setting("method.name data2vec needs method.class_weight 0", "class_weight must be 0")
            raise UserError(f"{name} here: the backbone has no class token that could predict the image")
        pooled = Pooled(backbone.width, target.width, class_tokens=class_tokens(backbone))
        branches.append(Branch("class", pooled, target, squared, "pooled", class_weight))
    method = Method(backbone, masking, branches)
    method.apply(initialise)
    initialise_tokens(method)
    method.restart_average()
    return method
