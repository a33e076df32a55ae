"""An ablation of this package's own, in neither document: two frozen encoders, one shared part."""
