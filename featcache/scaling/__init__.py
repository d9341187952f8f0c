"""Dask: the same work on many machines."""
