"""What is long-lived."""
