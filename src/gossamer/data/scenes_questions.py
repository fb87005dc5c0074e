"""Questions about a scene, each with an answer of one word.

Yes/no questions ("closed") are balanced so that the question's words alone say nothing: the answer is drawn first and
the words are drawn the same way for both answers (colours, shapes and sizes are exchangeable in the generator).
A template is used only where both answers can be given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from gossamer.data.scenes_render import (
    COLOURS,
    NUMBERS,
    SHAPES,
    SIZES,
    SPLITS,
    TEXTURES,
    Draw,
    Object,
    Scene,
    region,
)

KINDS = ("exist", "count", "colour", "shape", "size", "where", "compare", "spatial")
DEFAULT = {"exist": 3, "count": 2, "colour": 2, "shape": 2, "size": 2, "where": 2, "compare": 2, "spatial": 4}
"""Questions of each kind asked about one scene (fewer where the scene allows none)."""

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>", "<image>")
_WORDS = "a an are how is larger many more of of object objects shape size smaller than the there what where colour ?"
RELATIONS = {
    "left": ("left of", 0, -1),
    "right": ("right of", 0, 1),
    "above": ("above", 1, -1),
    "below": ("below", 1, 1),
}
PLACES = ("top-left", "top-right", "bottom-left", "bottom-right", "center")


@dataclass(frozen=True)
class Question:
    """kind: one of `KINDS`; closed: the answer is yes or no.

    referents: (position of the noun among the words, number of the object meant), for the nouns that mean one object.
    """

    kind: str
    text: str
    answer: str
    closed: bool
    referents: tuple[tuple[int, int], ...] = field(default=(), compare=False)


def vocabulary() -> tuple[str, ...]:
    """The closed word list in the order of the token numbers: 5 special tokens, then every word in use."""
    words = set(_WORDS.split()) | set(COLOURS) | set(SHAPES) | {_plural(s) for s in SHAPES} | set(SIZES)
    words |= set(TEXTURES) | set(NUMBERS) | set(RELATIONS) | set(PLACES) | {"yes", "no"}
    return SPECIAL + tuple(sorted(words))


def _plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")


def _article(name: str) -> str:
    return "an" if name[0] in "aeiou" else "a"


def questions(scene: Scene, counts: Mapping[str, int] | None = None, variant: int = 0) -> list[Question]:
    """Questions about a scene, in the order of `KINDS`; another `variant` asks other ones.

    A pure function of the scene's split, index and content, `counts` and `variant`. Two questions may coincide:
    removing repeats would tilt the yes/no balance.
    """
    draw = Draw(SPLITS[scene.split], scene.index, 1 + variant)
    ask = _Asker(scene, draw)
    out: list[Question] = []
    for kind in KINDS:
        make = getattr(ask, kind)
        for _ in range((counts if counts is not None else DEFAULT).get(kind, 0)):
            question = make()
            if question is not None:
                out.append(question)
    return out


class _Asker:
    """Makes one question of each kind, or None where the scene allows none."""

    def __init__(self, scene: Scene, draw: Draw) -> None:
        self.draw = draw
        self.objects = scene.objects
        self.width = scene.width
        o = scene.objects
        self.by_shape = Counter(x.shape for x in o)
        self.by_colour = Counter(x.colour for x in o)
        self.by_pair = Counter((x.colour, x.shape) for x in o)
        self.by_sized = Counter((x.size, x.colour, x.shape) for x in o)
        self.names = [self._names(x) for x in o]
        self.named = [i for i, n in enumerate(self.names) if n]
        self.regions = [region(x.centre, self.width) for x in o]

    def _names(self, o: Object) -> list[str]:
        """The ways to call this object that no other object answers to."""
        names = []
        if self.by_pair[o.colour, o.shape] == 1:
            names += [f"{o.colour} {o.shape}"] * 2
        if self.by_shape[o.shape] == 1:
            names.append(o.shape)
        if self.by_colour[o.colour] == 1:
            names.append(f"{o.colour} object")
        return names

    def _about(self, kind: str, start: str, options: list[tuple[int, str, str]]) -> Question | None:
        """A question about one object; options are (object, name, answer), the answers made equally likely."""
        if not options:
            return None
        answers = sorted({a for _, _, a in options})
        answer = self.draw.pick(answers)
        number, name, _ = self.draw.pick([x for x in options if x[2] == answer])
        text = f"{start} the {name} ?"
        return Question(kind, text, answer, False, ((len(text.split()) - 2, number),))

    def exist(self) -> Question | None:
        draw = self.draw
        yes = draw.below(2) == 0
        template = draw.pick(("shape", "colour", "pair", "pair", "pair", "sized"))
        if template in ("shape", "colour"):
            values, present = (SHAPES, self.by_shape) if template == "shape" else (COLOURS, self.by_colour)
            there, absent = [v for v in values if present[v]], [v for v in values if not present[v]]
            if absent:
                word = draw.pick(there if yes else absent)
                name = word if template == "shape" else f"{word} object"
                return Question("exist", f"is there {_article(name)} {name} ?", "yes" if yes else "no", True)
        o = draw.pick(self.objects)
        size, colour, shape = o.size, o.colour, o.shape
        if not yes:
            ways = ("colour", "shape", "both") if template != "sized" else ("colour", "shape", "size", "size")
            for _ in range(60):
                o = draw.pick(self.objects)
                way = draw.pick(ways)
                size, colour, shape = o.size, o.colour, o.shape
                if way in ("colour", "both"):
                    colour = draw.pick(COLOURS)
                if way in ("shape", "both"):
                    shape = draw.pick(SHAPES)
                if way == "size":
                    size = draw.pick(SIZES)
                if not (self.by_sized[size, colour, shape] if template == "sized" else self.by_pair[colour, shape]):
                    break
            else:
                return None
        name = f"{size} {colour} {shape}" if template == "sized" else f"{colour} {shape}"
        return Question("exist", f"is there {_article(name)} {name} ?", "yes" if yes else "no", True)

    def count(self) -> Question | None:
        draw = self.draw
        template = draw.pick(("shape", "colour", "pair", "shape", "colour", "all"))
        if template == "all":
            return Question("count", "how many objects ?", NUMBERS[len(self.objects)], False)
        options: list[tuple[str, int]]
        if template == "shape":
            options = [(_plural(s), self.by_shape[s]) for s in SHAPES]
        elif template == "colour":
            options = [(f"{c} objects", self.by_colour[c]) for c in COLOURS]
        else:
            options = [(f"{c} {_plural(s)}", self.by_pair[c, s]) for c in self.by_colour for s in self.by_shape]
        number = draw.pick(sorted({n for _, n in options}))
        name = draw.pick([t for t, n in options if n == number])
        return Question("count", f"how many {name} ?", NUMBERS[number], False)

    def colour(self) -> Question | None:
        options = [(i, o.shape, o.colour) for i, o in enumerate(self.objects) if self.by_shape[o.shape] == 1]
        sized = Counter((o.size, o.shape) for o in self.objects)
        for i, o in enumerate(self.objects):
            if sized[o.size, o.shape] == 1:
                options.append((i, f"{o.size} {o.shape}", o.colour))
        return self._about("colour", "what colour is", options)

    def shape(self) -> Question | None:
        options = []
        sizes = Counter(o.size for o in self.objects)
        for i, o in enumerate(self.objects):
            if self.by_colour[o.colour] == 1:
                options += [(i, f"{o.colour} object", o.shape)] * 2
            elif sizes[o.size] == 1:
                options.append((i, f"{o.size} object", o.shape))
        return self._about("shape", "what shape is", options)

    def size(self) -> Question | None:
        options = [(i, n, o.size) for i, o in enumerate(self.objects) for n in self.names[i]]
        return self._about("size", "what size is", options)

    def where(self) -> Question | None:
        options = [(i, n, r) for i, r in enumerate(self.regions) if r is not None for n in self.names[i]]
        return self._about("where", "where is", options)

    def compare(self) -> Question | None:
        draw = self.draw
        yes = draw.below(2) == 0
        pairs = [(i, j) for i in self.named for j in self.named if self.objects[i].size != self.objects[j].size]
        if pairs and draw.below(2):
            relation = draw.pick(("larger", "smaller"))
            i, j = draw.pick(pairs)
            bigger = SIZES.index(self.objects[i].size) > SIZES.index(self.objects[j].size)
            if (bigger == (relation == "larger")) != yes:
                i, j = j, i
            return self._two("compare", i, f"{relation} than", j, yes)
        template = draw.pick(("colour", "shape"))
        values, have = (COLOURS, self.by_colour) if template == "colour" else (SHAPES, self.by_shape)
        groups = [(a, b) for a in values for b in values if have[a] > have[b]]
        both = [(a, b) for a, b in groups if have[b]]
        if both and draw.below(10) < 7:
            groups = both
        if not groups:
            return None
        a, b = draw.pick(groups)
        if not yes:
            a, b = b, a
        x, y = (f"{a} objects", f"{b} objects") if template == "colour" else (_plural(a), _plural(b))
        return Question("compare", f"are there more {x} than {y} ?", "yes" if yes else "no", True)

    def spatial(self) -> Question | None:
        draw = self.draw
        yes = draw.below(2) == 0
        axis = draw.below(2)
        margin = 6 * self.width / 64
        c = [o.centre for o in self.objects]
        pairs = [(i, j) for i in self.named for j in self.named if c[i][axis] - c[j][axis] >= margin]
        if not pairs:
            return None
        i, j = draw.pick(pairs)  # i is right of or below j
        words, _, sign = draw.pick([r for r in RELATIONS.values() if r[1] == axis])
        if (sign > 0) != yes:
            i, j = j, i
        return self._two("spatial", i, words, j, yes)

    def _two(self, kind: str, i: int, relation: str, j: int, yes: bool) -> Question:
        """A yes/no question that names two objects."""
        a, b = self.draw.pick(self.names[i]), self.draw.pick(self.names[j])
        text = f"is the {a} {relation} the {b} ?"
        marks = ((1 + len(a.split()), i), (len(text.split()) - 2, j))
        return Question(kind, text, "yes" if yes else "no", True, marks)
