"""Text from an export: an engine that runs many requests at once, and an OpenAI-compatible API over it."""
