"""What policies would have saved on recorded traffic, beside what was possible."""
