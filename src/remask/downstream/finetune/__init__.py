"""`remask finetune`: images and classes, from files to top-1 accuracy."""
