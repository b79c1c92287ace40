"""The types of question that VQA is scored by, each the words that it begins with.

The 64 of github.com/GT-Vision-Lab/VQA, QuestionTypes/mscoco_question_types.txt, and one for the rest. The annotations
were given theirs by the first words of the question; read off the question here, test questions have one too.
"""

import re

_TYPES = """
how many|is the|what|what color is the|what is the|is this|is this a|what is|are the|what kind of|is there a
what type of|is it|what are the|where is the|is there|does the|what color are the|are these|are there|which|is
what is the man|is the man|are|how|does this|what is on the|what does the|how many people are|what is in the
what is this|do|what are|are they|what time|what sport is|are there any|is he|what color is|why|where are the
what color|who is|what animal is|is the woman|is this an|do you|how many people are in|what room is|has
is this person|what is the woman|can you|why is the|is the person|what is the color of the|what is the person|could
was|is that a|what number is|what is the name|what brand
"""
VQA_QUESTION_TYPES = frozenset(_TYPES.strip().replace("\n", "|").split("|"))
NO_TYPE = "none of the above"
_LONGEST = max(len(kind.split()) for kind in VQA_QUESTION_TYPES)


def vqa_question_type(question: str) -> str:
    """The longest type that the question begins with, as "what is the …", or else `NO_TYPE`."""
    words = re.findall(r"[\w'-]+", question.lower())
    for count in range(min(_LONGEST, len(words)), 0, -1):
        if (kind := " ".join(words[:count])) in VQA_QUESTION_TYPES:
            return f"{kind} …"
    return NO_TYPE
