"""What a file is worth, in numbers."""
