"""`easydistill serve`: a model on this machine behind OpenAI's protocol.

- `settings.py`, `command.py`: what was asked for; which backend does it.
- `bodies.py`, `problems.py`: requests as clients send them, and what is wrong with them.
- `chats.py`: messages → prompts; what was written → messages.
- `rows.py`, `engine.py`, `drawing.py`: answers being written, the thread that writes them, and how tokens are drawn.
- `replies.py`, `app.py`: what clients are sent, and the routes.
- `vllm.py`: vLLM's own server in place of all that.
"""
