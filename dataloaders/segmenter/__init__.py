"""What the segmenter sees: scans to segment, scans with labels, training patches in a stated mix."""
