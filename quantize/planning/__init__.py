"""What becomes of each tensor, decided from headers and measured sensitivities."""
