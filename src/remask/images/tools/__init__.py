"""Tools around a source: packing it, looking it over, measuring its values."""
