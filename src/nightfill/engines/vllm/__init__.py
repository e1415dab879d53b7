"""vLLM: a launcher and a client of servers, and the plug-in that gives them nightfill's KV store."""
