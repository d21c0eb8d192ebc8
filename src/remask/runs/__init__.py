"""Training a recipe in a run folder, resuming it, and opening its network again."""
