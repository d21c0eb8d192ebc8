"""Files as people have them and as runs need them: any name, small texts in any coding, tensors."""
