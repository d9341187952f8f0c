"""Stage 2: fusion, heads, folds, metrics and evaluation on cached features."""
