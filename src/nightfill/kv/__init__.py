"""Where KV lives: keys, sealed blocks, tiers and the store over them."""
