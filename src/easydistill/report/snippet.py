"""Python code that loads the student, with plain transformers where these can."""

from __future__ import annotations

import json

_SCORING = """\
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

path = {path}
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForSequenceClassification.from_pretrained(path)

chat = [
    {{"role": "user", "content": "Why does bread rise?"}},
    {{"role": "assistant", "content": "Yeast makes gas, and the dough holds it."}},
]
inputs = tokenizer.apply_chat_template(chat, return_dict=True, return_tensors="pt")
with torch.no_grad():
    print(model(**inputs).logits.item())
"""
_SCORING_IMAGES = """\
import torch
from PIL import Image
from transformers import AutoProcessor

# transformers has such a class for Gemma 3 alone: there, AutoModelForSequenceClassification does the same.
from easydistill.models.loading import load_classifier

path = {path}
processor = AutoProcessor.from_pretrained(path)
model = load_classifier(path, torch.float32)

content = [{{"type": "image"}}, {{"type": "text", "text": "What does this show?"}}]
chat = [
    {{"role": "user", "content": content}},
    {{"role": "assistant", "content": "A red square."}},
]
text = processor.tokenizer.apply_chat_template(chat, tokenize=False)
inputs = processor(text=[text], images=[[Image.open("picture.png")]], return_tensors="pt")
with torch.no_grad():
    print(model(**inputs).logits.item())
"""
_ANSWERING = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

path = {path}
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForCausalLM.from_pretrained(path)

chat = [{{"role": "user", "content": "Why does bread rise?"}}]
inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=128)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
"""
_SEEING = """\
from transformers import AutoModelForImageTextToText, AutoProcessor

path = {path}
processor = AutoProcessor.from_pretrained(path)
model = AutoModelForImageTextToText.from_pretrained(path)

content = [{{"type": "image", "path": "picture.png"}}, {{"type": "text", "text": "What does this show?"}}]
chat = [{{"role": "user", "content": content}}]
inputs = processor.apply_chat_template(
    chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
)
output = model.generate(**inputs, max_new_tokens=128)
print(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
"""


def snippet(directory: str, *, scores: bool = False, sees: bool = False) -> str:
    """Code for a student in this directory.

    Args:
        scores: whether it is a reward model.
        sees: whether it sees images.
    """
    kinds = {(True, True): _SCORING_IMAGES, (True, False): _SCORING, (False, True): _SEEING, (False, False): _ANSWERING}
    kind = kinds[scores, sees]
    return kind.format(path=json.dumps(directory, ensure_ascii=False))
