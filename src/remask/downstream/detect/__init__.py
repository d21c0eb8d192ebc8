"""`remask detect`: images and boxes, from an annotation file to AP."""
