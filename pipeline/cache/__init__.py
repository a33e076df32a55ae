"""The target cache on disk: its layout, its reader and its writer."""
