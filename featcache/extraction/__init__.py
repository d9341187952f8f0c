"""Stage 1: backbones run over images, and their vectors go to the store."""
