"""Reading and writing files: names of any bytes, small texts in any encoding, tensors, atomic replacement."""
