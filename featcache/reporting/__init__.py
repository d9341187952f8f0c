"""Run folders, comparison tables and plots."""
