"""Metrics, one question a file: arrays in, numbers out."""
