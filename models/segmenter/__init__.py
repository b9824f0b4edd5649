"""The segmenter: images to label probabilities."""
