"""The former address of `load_export`: the load_example.py of earlier exports imports it from here."""

from remask.downstream.export import load_export

__all__ = ["load_export"]
