"""The one place that renders chats: template → text → token ids → mask of the tokens to learn.

What enters: messages, the chat's tools, the template's variables. What leaves: token ids, and a mask that is true
exactly on what the assistant would have to generate: its turns, each through the token that ends it, never a prompt
and never anything after an end token.

`templates` renders with transformers' own renderer, `spelling` gives messages the form that a template reads,
`sentinels` finds each part of a chat in the rendered text, `turns` the spans that are learned, `shown` what a template
leaves out. `renderer` puts them together.
"""

from easydistill.data.chat.images import Expander, ImageRefused
from easydistill.data.chat.rendered import Rendered
from easydistill.data.chat.renderer import ChatRenderer
from easydistill.data.chat.shown import Missing, count_kinds, describe, tell

__all__ = ["ChatRenderer", "Expander", "ImageRefused", "Missing", "Rendered", "count_kinds", "describe", "tell"]
