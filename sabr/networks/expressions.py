"""Text of nested parentheses (SMT-LIB, counterexamples) as nested lists of words."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_TOKEN = re.compile(r"\s+|;[^\n]*|([()])|([^\s();]+)")
_DEEPEST = 100


@dataclass(frozen=True)
class Expression:
    """A word, or a list of expressions in parentheses; `line` is where it starts, from 1."""

    line: int
    word: str | None = None
    items: tuple["Expression", ...] = ()

    def __str__(self) -> str:
        """A glimpse of it, for messages."""
        if self.word is not None:
            return self.word[:40]
        shown = [item.word[:40] if item.word is not None else "(...)" for item in self.items[:4]]
        return f"({' '.join(shown)}{' ...' if len(self.items) > 4 else ''})"


class MalformedText(Exception):
    """The text is not what it should be; says where and what."""


def parse(text: str) -> Iterator[Expression]:
    """The expressions of a text, one after the other; comments run from a semicolon to the end of the line.

    Raises
    ------
    MalformedText
        Where parentheses do not match, or are nested too deeply.
    """
    open_lists: list[tuple[int, list[Expression]]] = []
    line, position = 1, 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        assert match is not None  # the alternatives cover every character
        parenthesis, word = match.groups()
        done: Expression | None = None
        if parenthesis == "(":
            if len(open_lists) == _DEEPEST:
                raise MalformedText(f"line {line}: parentheses are nested deeper than {_DEEPEST}")
            open_lists.append((line, []))
        elif parenthesis == ")":
            if not open_lists:
                raise MalformedText(f"line {line}: a parenthesis is closed that was never opened")
            start, items = open_lists.pop()
            done = Expression(start, items=tuple(items))
        elif word is not None:
            done = Expression(line, word)
        if done is not None:
            if open_lists:
                open_lists[-1][1].append(done)
            else:
                yield done
        line += match.group().count("\n")
        position = match.end()
    if open_lists:
        raise MalformedText(f"the parenthesis opened in line {open_lists[-1][0]} is never closed: the text is cut off")
