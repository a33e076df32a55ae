"""GLUE: what a text encoder is worth when it is fine-tuned on nine tasks of language."""
