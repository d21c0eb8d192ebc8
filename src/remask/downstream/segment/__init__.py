"""`remask segment`: semantic segmentation, from files of images and masks to mIoU."""
