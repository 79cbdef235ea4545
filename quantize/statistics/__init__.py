"""Texts, and what they say of the inputs of linears."""
