"""The names of fields that rows are known by."""

from __future__ import annotations

CHATS = ("messages", "conversations", "conversation", "chat", "dialog", "dialogue", "items", "turns", "contents")
"""Lists of turns."""
WRAPPERS = ("input", "request", "body")
"""Objects around the fields of a chat, as in requests to a server and OpenAI's preference data."""
TEXTS = "data"
"""A list of texts in which user and assistant take turns (UltraChat; `conversations` may be one, too: LIMA)."""
PROMPTS = ("instruction", "prompt", "question", "query", "problem", "input", "inputs")
"""A prompt: the first of these. `problem` and what follows count only where there is no other."""
BESIDE = ("context", "input")
"""Texts that belong to a prompt and stand after it, an empty line between."""
SYSTEMS = (
    "system",
    "system_prompt",
    "system_message",
    "system_instruction",
    "system_instructions",
    "custom_instructions",
    "systemPrompt",
    "systemInstruction",
    "sys_prompt",
)
ANSWERS = ("output", "response", "completion", "generation", "generated_solution", "model_output")
"""An answer, whatever else stands beside it: the first of these."""
CHAINS = ("solution", "answer", "targets", "target")
"""An answer where there is none of `ANSWERS` and no other family of them; `answer` beside a chain is the final one."""
KEPT = frozenset(("solution", "generated_solution", "targets", "target"))
"""Answers that stay in a row's other fields too: rewards and checks look for known answers there."""
CALLS = ("tool_calls", "function_calls", "function_call", "answers")
"""Calls that are the answer of a row with a prompt."""
THOUGHTS = (
    "reasoning_content",
    "reasoning",
    "thinking",
    "thoughts",
    "thought",
    "think",
    "chain_of_thought",
    "complex_cot",
    "rationale",
    "reasoning_trace",
    "thinking_trajectory",
)
"""Thoughts before the answer that stands beside them."""
FLAGS = frozenset({"on", "off", "true", "false", "yes", "no", "none", "low", "medium", "high", "0", "1"})
"""What a column of the name of thoughts holds where it says whether, and how much, a model thought."""
TOOLS = ("tools", "functions", "available_tools")
KWARGS = ("chat_template_kwargs", "template_kwargs")
FINALS = ("final_answer", "expected_answer", "ground_truth", "reference_answer")
"""A known answer: the first of these that is a text or a number."""
LABELS = ("label", "kto_tag")
"""Whether a row's answer is a good one (KTO)."""
IMAGES = ("images", "image", "image_path", "image_file", "image_url")
"""Columns of images: the first of these is read."""
VIDEOS, AUDIOS = ("videos", "video", "video_url", "video_path"), ("audios", "audio", "audio_url", "audio_path")
MEDIA = (*IMAGES, *VIDEOS, *AUDIOS)

CHAT_KEYS = frozenset(
    (
        *("instruction", "prompt", "question", "query", "output", "response", "answer", "completion", "id", "input"),
        *("system", "history", "messages", "conversations", "reasoning_content", "tools", *KWARGS),
        *("context", "tool_calls", "function_calls", "function_call"),
    )
)
"""Fields that rows are written with, and that are never kept beside a chat."""
PAIRED = (
    *("chosen", "rejected", "chosen_response", "rejected_response", "rejected_messages", "preference_strength"),
    *("overall_preference", "better_response_id", "safer_response_id", "winner", "preference", "preferred"),
    *("preferred_output", "non_preferred_output", "response_j", "response_k"),
)
"""Fields that only rows with two answers to compare have."""
