"""ROUNDERS: how a weight becomes codes on a grid. A new algorithm is one file and one row here."""
