"""`remask show`: a recipe's equation, size and cost."""

import json
from collections.abc import Sequence
from typing import Any

from remask.recipe import load_recipe


def show(name: str, settings: Sequence[str] = (), as_json: bool = False) -> None:
    """Print a recipe with its equation, parameters and GFLOP, which are counted without making weights."""
    recipe = load_recipe(name, settings)

    import torch

    from remask.build.pretraining import build_method, parameters
    from remask.build.training import gflops_per_image, peak_lr
    from remask.method import equation
    from remask.recipe import dump

    with torch.device("meta"):
        method = build_method(recipe)
    size = {"backbone": parameters(method.backbone.network), "total": parameters(method)}
    facts: dict[str, Any] = {
        "recipe": recipe.model_dump(mode="json"),
        "equation": equation(method, recipe.data.image_size),
        "parameters": size,
        "gflops_forward_per_image": gflops_per_image(recipe),
        "peak_lr": peak_lr(recipe, method),
        "ete": recipe.ete_per_epoch * recipe.optim.epochs,
    }
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    print(f"{recipe.name}: {recipe.title}\n{recipe.paper}")
    print(f"{recipe.table or 'no table'}; expected: {recipe.expected or 'not published'}; cost: {recipe.cost or '-'}\n")
    print(f"{facts['equation']}\n")
    print(f"parameters  {size['backbone']:,} in the backbone, {size['total']:,} in all")
    print(f"forward     {facts['gflops_forward_per_image']:.2f} GFLOP per image, all views")
    print(f"schedule    {recipe.optim.epochs} epochs = {facts['ete']} ETE, peak lr {facts['peak_lr']:.3g}")
    print(f"run it      {recipe.command}\n")
    for note in recipe.notes:
        print(f"note        {note}")
    print(f"\n{dump(recipe)}", end="")
