"""`remask finetune`: fine-tuning for classification, from image files to top-1 accuracy."""
