"""A teacher behind any OpenAI-compatible API."""
