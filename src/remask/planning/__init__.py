"""The cost of a recipe before training: counted on tensors without memory, or measured by a few steps.

devices.py    data sheets of common GPUs             anatomy.py        parameters, FLOPs, bytes; needs no device
rehearsal.py  a few real steps in their own process  micro_batches.py  accumulate = "auto"
"""
