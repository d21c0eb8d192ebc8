"""A recipe becomes objects: method, loader, trainer, teachers, codebook."""
