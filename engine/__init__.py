"""Plumbing: files, checkpoints, devices, run log, weights, signals."""
