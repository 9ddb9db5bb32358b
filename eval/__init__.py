"""Offline evaluation: metrics with intervals, real baselines, and what is written down about them."""
