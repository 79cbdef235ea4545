"""What happens to a decoder layer around its rounding: the choice of axes, and what is learned afterwards."""
