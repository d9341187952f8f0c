"""Labelling new images with the model of a run."""
