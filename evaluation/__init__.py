"""Two folders to numbers, tables and pictures. Never sees a model."""

from evaluation.evaluate import check_metrics, evaluate_results, headline
from evaluation.tables import format_table

__all__ = ["check_metrics", "evaluate_results", "format_table", "headline"]
