"""Fuzzing of every reader: `make fuzz`, or `python -m tests.fuzz --help`.

Input i of a target is a function of the target's name, its seeds and i, so that an input can be made again from its
number. What is found is kept in found/ and replayed by tests/fuzz/test_fuzz.py.
"""
