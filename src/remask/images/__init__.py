"""x of the equation: images from anywhere as uint8 batches, in an order that a seed decides."""
