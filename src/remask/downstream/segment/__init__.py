"""`remask segment`: images and masks of classes, from files to mIoU."""
