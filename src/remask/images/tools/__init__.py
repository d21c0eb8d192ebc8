"""Tools for a source: packing it, surveying it, measuring its values."""
