"""A trained model for other programs: GGUF, Ollama, vLLM, a server."""
