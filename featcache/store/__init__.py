"""Between the stages: keys, HDF5 files, the cache folder, and Features."""
