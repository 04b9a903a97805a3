"""What a model wrote, as text → thoughts, text and calls, by the forms that the chat template itself uses.

A form is a module-level `Form`. Which one a model writes is found by rendering a known call through its template: the
form that reads this call back is the one (`forms.py`). A text with a call's mark whose call cannot be read is an error,
never an answer.
"""

from easydistill.teachers.parsing.reader import AnswerReader, Written, text_of
from easydistill.teachers.parsing.stream import AnswerStream

__all__ = ["AnswerReader", "AnswerStream", "Written", "text_of"]
