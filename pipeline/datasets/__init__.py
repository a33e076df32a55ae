"""Known datasets by name, and any folder of images: each is written as shards."""
