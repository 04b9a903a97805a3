"""Teachers: models that answer, behind an API, in vLLM, or in this process."""
