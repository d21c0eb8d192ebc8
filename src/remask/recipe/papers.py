"""Derives a recipe's paper from its method, and the command of a shipped recipe from its name."""

from remask.recipe.schema import Recipe

PAPERS = {
    "mae": "Masked Autoencoders Are Scalable Vision Learners, arXiv 2111.06377",
    "simmim": "SimMIM: A Simple Framework for Masked Image Modeling, arXiv 2111.09886",
    "maskfeat": "Masked Feature Prediction for Self-Supervised Visual Pre-Training, arXiv 2112.09133",
    "beit": "BEiT: BERT Pre-Training of Image Transformers, arXiv 2106.08254",
    "convmae": "ConvMAE: Masked Convolution Meets Masked Autoencoders, arXiv 2205.03892",
    "fastmim": "FastMIM: Expediting Masked Image Modeling Pre-training for Vision, arXiv 2212.06593",
    "dmae": "Masked Autoencoders Enable Efficient Knowledge Distillers, arXiv 2208.12256",
    "crossmae": "Rethinking Patch Dependence for Masked Autoencoders, arXiv 2401.14391",
    "data2vec": "Efficient Self-supervised Learning with Contextualized Target Representations, arXiv 2212.07525",
    "refiner": (
        "MIM-Refiner: A Contrastive Learning Boost from Intermediate Pre-Trained Representations, arXiv 2402.10093"
    ),
    "localmim": "Masked Image Modeling with Local Multi-Scale Reconstruction, arXiv 2303.05251",
    "moma": "MOMA: Distill from Self-Supervised Teachers, arXiv 2302.02089",
}
"""Method → title and arXiv number of its paper."""
DMJD = "Disjoint Masking with Joint Distillation for Efficient Masked Image Modeling, arXiv 2301.00230"


def with_paper(recipe: Recipe) -> Recipe:
    """The recipe with the paper of its method (DMJD's with disjoint views or JD), unless it names one."""
    disjoint = recipe.dm and not recipe.dm.independent
    paper = DMJD if disjoint or recipe.jd else PAPERS[recipe.method.name]
    return recipe if recipe.paper else recipe.model_copy(update={"paper": paper})


def with_command(recipe: Recipe) -> Recipe:
    """A shipped recipe with the command that runs it on ImageNet, unless it names one."""
    command = f"remask pretrain --recipe {recipe.name} --data imagenet/train --out runs/{recipe.name}"
    return recipe if recipe.command else recipe.model_copy(update={"command": command})


__all__ = ["DMJD", "PAPERS", "with_command", "with_paper"]
