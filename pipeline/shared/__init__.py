"""A model of images and texts: two encoders cut short, and one encoder that both share."""
