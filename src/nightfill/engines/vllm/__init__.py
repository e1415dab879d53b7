"""vLLM: a client for servers that run elsewhere, and the plug-in that gives them nightfill's KV store."""
