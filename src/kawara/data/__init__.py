"""Images in, batches out: sources, decoding, cache, splits, augmentation, sampling, loading."""
