"""A recipe trained in a folder, gone on with, and opened again."""
