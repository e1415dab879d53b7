"""The front door: OpenAI-compatible HTTP."""
