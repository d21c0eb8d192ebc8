"""x of the equation: pictures from anywhere as uint8 batches, in an order that a seed decides."""
