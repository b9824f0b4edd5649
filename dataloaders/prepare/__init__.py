"""Scans and label maps to prepared slices: find, inspect, slice, split."""
