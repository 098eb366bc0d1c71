"""Grids: many runs of one base config, driven to their ends, compared with intervals, and judged by hypotheses."""
