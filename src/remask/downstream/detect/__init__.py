"""`remask detect`: object detection, from images and an annotation file to average precision."""
