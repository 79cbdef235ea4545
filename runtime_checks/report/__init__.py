"""One page of all that is known."""
