"""Rewards of our own, called as TRL calls them."""


def brevity(completions, **columns):
    """1 for an answer of at most 20 words, less for a longer one, 0 for an empty one."""
    lengths = [len(completion[0]["content"].split()) for completion in completions]
    return [min(1.0, 20 / length) if length else 0.0 for length in lengths]
