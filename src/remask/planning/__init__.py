"""What a recipe will cost, before anybody pays: counted on tensors without memory, or rehearsed on this machine.

devices.py   data sheets of common GPUs     anatomy.py    parameters, FLOPs and bytes, exact and on no device
rehearsal.py a few real steps in a process of their own, and a line through them     parts.py  accumulate = "auto"
"""
