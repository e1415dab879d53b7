"""nightfill pre-computes long-lived LLM context while the machine is idle, and proves per request that it was used."""

__all__ = ["__version__"]
__version__ = "0.1.0"
