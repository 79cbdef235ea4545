"""A model file as an app ships it."""
