"""Real texts of several kinds, and what is left of one when its words or letters mean nothing.

The long one is CPython's own documentation, which comes with it. The two foreign ones and the diary
were written for this course, so no model can have seen them when it was trained.
"""

from __future__ import annotations

import inspect
import random
import string

from utils.llm import decoder

DIARY = """\
The ferry was late again, so I bought a paper bag of plums from the woman with the green scarf
and sat down on the wall. She told me that her brother had repaired the lighthouse twice, and
that nobody had thanked him either time. When the boat came at last, the gangway was stuck, and
we all stood in the drizzle while a boy of perhaps twelve kicked at the hinge until it gave way.
My uncle used to say that patience is only stubbornness with better manners. I thought of him
all the way across. The plums were sour, but I ate every one of them, and kept the stones in my
pocket for the garden behind the school, where nothing but nettles has grown since the well was
closed. In the evening I wrote to Martha that I would stay another week, and did not say why."""
GERMAN = """\
Die Fähre kam wieder zu spät, also kaufte ich bei der Frau mit dem grünen Schal eine Tüte
Pflaumen und setzte mich auf die Mauer. Sie erzählte mir, dass ihr Bruder zweimal den Leuchtturm
repariert habe und dass ihm beide Male niemand gedankt habe. Als das Schiff endlich anlegte,
klemmte der Steg, und wir standen alle im Nieselregen, bis ein Junge von vielleicht zwölf Jahren
so lange gegen das Scharnier trat, bis es nachgab. Die Pflaumen waren sauer, aber ich aß sie
alle."""
CHINESE = """\
渡船又晚点了，于是我向那位围着绿围巾的女人买了一袋李子，坐在墙头上等。她告诉我，她哥哥修过两
次灯塔，可是两次都没有人谢他。船终于靠岸的时候，跳板卡住了，我们都站在细雨里，直到一个大约十
二岁的男孩用力去踢那个合页，它才松开。李子很酸，但是我把它们都吃完了，把核留在口袋里，准备种
在学校后面的园子里。"""


class TextMissing(LookupError):
    """A text that should come with Python does not."""


def manual() -> dict[str, str]:
    """What `help()` shows about the language, by topic. TextMissing: some systems leave it out."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise TextMissing(
            "this Python has no module pydoc_data.topics: install its whole standard library"
        ) from error
    return topics


def documentation() -> str:
    """Four topics of the manual: English about how Python runs. TextMissing."""
    topics = manual()
    return "\n".join(topics[name] for name in ("execmodel", "exceptions", "import", "objects"))


def corpus(seed: int = 0) -> dict[str, str]:
    """Texts by kind, each of at least 160 tokens."""
    dice, chapters = random.Random(seed), documentation()
    shuffled = chapters[:4000].split()
    dice.shuffle(shuffled)
    return {
        "one sentence, repeated": "The ferry was late, so I bought a paper bag of plums. " * 40,
        "Python's manual": chapters,
        "Python code": inspect.getsource(decoder.Attention),
        "a diary": DIARY.replace("\n", " "),
        "the diary in German": GERMAN.replace("\n", " "),
        "the diary in Chinese": CHINESE.replace("\n", ""),
        "the manual's words, shuffled": " ".join(shuffled),
        "random letters": "".join(dice.choices(string.ascii_lowercase + " ", k=2000)),
    }
