"""The second opinion, which imports none of our packages."""
