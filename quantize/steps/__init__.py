"""What can happen to a decoder block on its way into a store, each a function from a block to the next."""
