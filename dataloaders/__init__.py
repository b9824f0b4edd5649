"""Disk to tensors: NIfTI and PNG, manifest, windows, datasets."""
