"""Judging models: ground truth, metrics, tables and contact sheets."""
