"""Two folders to numbers, tables and pictures. Never sees a model."""

from evaluation.results import evaluate_results, format_table, headline

__all__ = ["evaluate_results", "format_table", "headline"]
