"""What is embedded: the manifest, where images come from, and how one is decoded."""
