"""The built-in backends: their sections of the config, and how their teachers are made. No heavy library is loaded."""
