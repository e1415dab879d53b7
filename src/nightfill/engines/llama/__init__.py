"""llama.cpp, embedded: child processes of ours through xllamacpp."""
