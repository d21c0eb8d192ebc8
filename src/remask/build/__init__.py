"""From a recipe to objects: method, loader, trainer, teachers, codebook."""
