"""From a plan to a store."""
