"""Places for KV, fastest first."""
