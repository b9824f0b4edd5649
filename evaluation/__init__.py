"""Two folders to numbers, tables and pictures. Never sees a model."""

from evaluation.results import check_metrics, evaluate_results, format_table, headline

__all__ = ["check_metrics", "evaluate_results", "format_table", "headline"]
