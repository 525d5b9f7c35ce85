"""Metrics of sample sets, and the cost of computations. No files, no Ray."""

from pirf_ray.metrics import scalars  # noqa: F401  (registers)
from pirf_ray.metrics.base import METRICS, Metric, find_metrics, metric

__all__ = ["METRICS", "Metric", "find_metrics", "metric"]
