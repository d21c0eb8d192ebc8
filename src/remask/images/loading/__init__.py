"""From a source to batches: order, workers, cache, crops on the device."""
