"""The tests, importable as a package so that they share `tests.shapes` and `tests.architecture.source`."""
