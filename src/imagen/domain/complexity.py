"""How much a prompt asks of a model, judged by its words alone: a small score, of which every point can be told.

Five parts add up to 0..100. None of them ever falls when something is said after a blank at the end. What is counted:

| Part | Most | Points |
| --- | --- | --- |
| `length` | 25 | one for each two words |
| `clauses` | 20 | four for each comma, semicolon, colon, line, or joining word such as `with` or `behind` |
| `text` | 25 | ten where words are to be written in the picture, and three for each quoted word |
| `counts` | 15 | five for each thing that is counted: `three cats`, `12 windows` |
| `style` | 15 | three for each different word of style, light or lens |

The words are English, as the models' own are; a prompt in another language is judged by its length, clauses and quotes.
"""

from __future__ import annotations

import re
from typing import Final, Literal

import msgspec

Kind = Literal["text", "photo", "illustration", "logo", "design", "other"]
"""What sort of picture a prompt asks for: by this it is remembered what somebody kept."""

MOST: Final = {"length": 25, "clauses": 20, "text": 25, "counts": 15, "style": 15}
"""The most points of each part."""
_READ_CHARACTERS = 20_000
"""What comes after so many can add nothing any more to a prompt of usual words."""
_WORDS_A_POINT, _A_CLAUSE, _A_TEXT, _A_QUOTED_WORD, _A_COUNT, _A_STYLE = 2, 4, 10, 3, 5, 3

_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")
_CLAUSE = re.compile(
    r"[,;:\n]|\b(?:and|with|while|behind|beside|under|above|between|holding|wearing|surrounded|where|which|who)\b",
    re.IGNORECASE,
)
_QUOTED = re.compile(
    r"\"([^\"\n]{1,200})\"|“([^“”\n]{1,200})”|«([^«»\n]{1,200})»|(?<!\w)'([^'\n]{1,200})'(?!\w)"
)
_WRITTEN = re.compile(
    r"\b(?:that|which) (?:says|reads)\b|\b(?:saying|lettering|typography|inscription|headline|slogan|caption(?:ed)?|titled)\b"
    r"|\bthe (?:text|words?|letters?|title)\b|\bwith (?:the )?text\b",
    re.IGNORECASE,
)
_NUMBERS = "two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|dozen"
_UNITS = "mm|cm|k|mp|px|fps|percent|degrees|pm|am|x"
_COUNTED = re.compile(rf"\b(?:{_NUMBERS}|\d{{1,3}}) (?!(?:{_UNITS})\b)[^\W\d_]", re.IGNORECASE)
_STYLE: Final = frozenset(
    """
    abstract anime art baroque bokeh cartoon cel cinematic comic cubist cyberpunk deco detailed dramatic dslr dreamy
    editorial engraving etching expressionist fantasy film flat futuristic gothic gouache grain grainy hdr
    hyperrealistic illustration impressionist ink isometric line linocut lowpoly macro manga minimal minimalist
    minimalistic monochrome moody neon noir nouveau oil painterly painting pastel pencil photorealistic pixel pop
    portrait realistic retro render rococo sketch soft steampunk studio stylized surreal surrealist telephoto
    ukiyo vaporwave vibrant vintage watercolor watercolour woodcut wide
    """.split()  # noqa: SIM905 - seventy words as a list would be seventy lines
)

_LOGO = re.compile(
    r"\b(?:logos?|logotype|emblem|monogram|favicon|app icon|icons?|brand mark|wordmark)\b", re.IGNORECASE
)
_DESIGN = re.compile(
    r"\b(?:posters?|flyers?|banners?|brochures?|infographics?|menus?|mock-?ups?|packaging|labels?|business cards?|greeting cards?"
    r"|(?:book|album|magazine) covers?|t-?shirts?|stickers?|user interface|landing page|patterns?)\b",
    re.IGNORECASE,
)
_ILLUSTRATION = re.compile(
    r"\b(?:illustrat(?:ion|ions|ed)|cartoons?|watercolou?r|paint(?:ing|ed)|drawings?|drawn|sketch(?:es)?|anime|manga|comics?"
    r"|pixel art|vector|line art|clip ?art|woodcut|linocut|etching|engraving|gouache|oil on canvas)\b",
    re.IGNORECASE,
)
_PHOTO = re.compile(
    r"\b(?:photo(?:s|graph|graphs|graphy|realistic)?|dslr|bokeh|portrait of|headshot|product shot|close-?up|macro|telephoto"
    r"|wide[- ]angle|\d{2,3} ?mm|f/\d|cinematic|film still|snapshot)\b",
    re.IGNORECASE,
)
_VECTOR = re.compile(
    r"\b(?:svg|vector (?:graphic|graphics|file|art|logo|icon|illustration))\b", re.IGNORECASE
)
_TRANSPARENT = re.compile(r"\b(?:transparent|no) background\b|\bcut-?out\b", re.IGNORECASE)


class Complexity(msgspec.Struct, frozen=True, kw_only=True):
    """What a prompt asks of a model.

    Attributes:
        length, clauses, text, counts, style: points of each part, from 0 to what `MOST` says.
        kind: what sort of picture it is.
        needs: abilities that it asks for by its words: `typography`, `vector`, `transparent_background`.
    """

    length: int = 0
    clauses: int = 0
    text: int = 0
    counts: int = 0
    style: int = 0
    kind: Kind = "other"
    needs: frozenset[str] = frozenset()

    @property
    def score(self) -> int:
        """All parts together, 0..100."""
        return self.length + self.clauses + self.text + self.counts + self.style

    @property
    def parts(self) -> dict[str, int]:
        """The points by part."""
        return {name: getattr(self, name) for name in MOST}


def judge(prompt: str) -> Complexity:
    """Judge a prompt. The same text always gives the same points; nothing is looked up anywhere."""
    text = prompt[:_READ_CHARACTERS]
    words = _WORD.findall(text)
    quoted = ["".join(found) for found in _QUOTED.findall(text)]
    written = bool(quoted) or _WRITTEN.search(text) is not None
    points = {
        "length": len(words) // _WORDS_A_POINT,
        "clauses": _A_CLAUSE * len(_CLAUSE.findall(text)),
        "text": _A_TEXT * written + _A_QUOTED_WORD * sum(len(_WORD.findall(one)) for one in quoted),
        "counts": _A_COUNT * len(_COUNTED.findall(text)),
        "style": _A_STYLE * len(_STYLE.intersection(map(str.lower, words))),
    }
    needs = {
        "typography": written,
        "vector": _VECTOR.search(text) is not None,
        "transparent_background": _TRANSPARENT.search(text) is not None,
    }
    return Complexity(
        **{name: min(points[name], most) for name, most in MOST.items()},
        kind=_kind(text, written=written),
        needs=frozenset(need for need, asked in needs.items() if asked),
    )


def kind_of(prompt: str) -> Kind:
    """What sort of picture a prompt asks for."""
    return judge(prompt).kind


def _kind(text: str, *, written: bool) -> Kind:
    """The first that fits: a logo with a name in it is a logo, a poster with words a design."""
    if _LOGO.search(text):
        return "logo"
    if _DESIGN.search(text):
        return "design"
    if written:
        return "text"
    if _ILLUSTRATION.search(text):
        return "illustration"
    return "photo" if _PHOTO.search(text) else "other"
