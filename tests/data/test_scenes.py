"""The scene generator: the same everywhere, true answers, and words that give nothing away."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict

import numpy as np
import pytest

from gossamer.data.scenes import (
    COLOURS,
    HELD_OUT_PAIRS,
    KINDS,
    NUMBERS,
    PAIRS,
    SHAPES,
    SIZES,
    SPLITS,
    Object,
    Scene,
    coco,
    questions,
    scene,
    targets,
    vocabulary,
)

MANY = 1500
SINGULAR = {**{s + ("es" if s.endswith("s") else "s"): s for s in SHAPES}, "objects": "object"}


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [scene("train", i) for i in range(MANY)]


def named(words: list[str], objects: tuple[Object, ...]) -> list[Object]:
    """The objects that answer to a noun phrase."""
    found = list(objects)
    for word in words:
        word = SINGULAR.get(word, word)
        if word == "object":
            continue
        found = [o for o in found if word in (o.shape, o.colour, o.size)]
    return found


def truth(text: str, s: Scene) -> str:
    """The answer worked out from the objects, by another way than the generator's."""
    words = text.removesuffix(" ?").split()
    yes = {True: "yes", False: "no"}
    if words[:2] == ["is", "there"]:
        return yes[bool(named(words[3:], s.objects))]
    if words[0] == "how":
        return NUMBERS[len(named(words[2:], s.objects))]
    if words[:3] == ["are", "there", "more"]:
        cut = words.index("than")
        return yes[len(named(words[3:cut], s.objects)) > len(named(words[cut + 1 :], s.objects))]
    if words[0] == "what":
        (one,) = named(words[4:], s.objects)
        return getattr(one, words[1])
    if words[0] == "where":
        (one,) = named(words[3:], s.objects)
        x, y = (v / s.width - 0.5 for v in one.centre)
        if max(abs(x), abs(y)) < 0.08:
            return "center"
        return ("top" if y < 0 else "bottom") + "-" + ("left" if x < 0 else "right")
    relation = next(w for w in words if w in ("larger", "smaller", "left", "right", "above", "below"))
    cut = words.index(relation)
    after = cut + (1 if relation in ("above", "below") else 2)
    (a,), (b,) = named(words[2:cut], s.objects), named(words[after + 1 :], s.objects)
    (ax, ay), (bx, by) = a.centre, b.centre
    size = SIZES.index(a.size) - SIZES.index(b.size)
    answers = {
        "larger": size > 0,
        "smaller": size < 0,
        "left": ax < bx,
        "right": ax > bx,
        "above": ay < by,
        "below": ay > by,
    }
    return yes[answers[relation]]


def test_same_bytes_on_every_run() -> None:
    digest = hashlib.sha256()
    for split in SPLITS:
        for size in (64, 96):
            s = scene(split, 7, size=size)
            digest.update(s.image.tobytes() + s.owner.tobytes() + repr((s.objects, s.captions)).encode())
            digest.update(repr([(q.text, q.answer) for q in questions(s)]).encode())
    assert digest.hexdigest() == "f5b9aa5b9626387b8174682ca0354e7347895306bb7cf9fec9dc5e8916ccb434"


def test_a_scene_does_not_depend_on_its_neighbours() -> None:
    alone = scene("val", 5)
    for i in range(5):
        questions(scene("val", i))
    again = scene("val", 5)
    assert np.array_equal(alone.image, again.image)
    assert alone.objects == again.objects
    assert questions(alone) == questions(again)
    assert questions(alone) != questions(alone, variant=1)


def test_splits_share_no_picture() -> None:
    seen = {split: {scene(split, i).image.tobytes() for i in range(200)} for split in SPLITS}
    assert all(len(pictures) == 200 for pictures in seen.values())
    assert not seen["train"] & seen["val"]
    assert not seen["train"] & seen["test"]
    assert not seen["val"] & seen["test"]


def test_every_answer_is_true(scenes: list[Scene]) -> None:
    kinds: Counter[str] = Counter()
    for s in scenes[:600]:
        for q in questions(s):
            assert truth(q.text, s) == q.answer, (s.index, q.text)
            assert q.closed == (q.answer in ("yes", "no"))
            kinds[q.kind] += 1
    assert set(kinds) == set(KINDS)


def test_referents_are_the_objects_named(scenes: list[Scene]) -> None:
    for s in scenes[:300]:
        for q in questions(s):
            words = q.text.split()
            for place, number in q.referents:
                assert words[place] in (*SHAPES, "object")
                start = max(i for i in range(place) if words[i] == "the")
                assert named(words[start + 1 : place + 1], s.objects) == [s.objects[number]]


def test_words_alone_do_not_tell_yes_from_no() -> None:
    """What a reader of the question without the picture learns from other scenes is worth nothing."""
    kinds = {"exist": 6, "compare": 4, "spatial": 6}
    learnt: defaultdict[str, Counter[str]] = defaultdict(Counter)
    asked = [questions(scene("train", i), kinds) for i in range(5000)]
    balance: defaultdict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for qs in asked[:3500]:
        for q in qs:
            learnt[q.text][q.answer] += 1
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for qs in asked[3500:]:
        for q in qs:
            guess = learnt[q.text].most_common(1)[0][0] if learnt[q.text] else "yes"
            right[q.kind] += guess == q.answer
            total[q.kind] += 1
            template = tuple(
                "C" if w in COLOURS else "S" if w in SHAPES else "N" if w in SINGULAR else w for w in q.text.split()
            )
            balance[template][q.answer] += 1
    for kind in kinds:
        assert 0.45 < right[kind] / total[kind] < 0.55, (kind, right[kind] / total[kind])
    for template, answers in balance.items():
        n = sum(answers.values())
        if n >= 100:
            assert abs(answers["yes"] / n - 0.5) < 2.2 / n**0.5, (template, answers)


def test_vocabulary_is_closed(scenes: list[Scene]) -> None:
    words = set(vocabulary())
    assert len(words) == len(vocabulary())
    for s in scenes[:300]:
        for q in questions(s):
            assert {*q.text.split(), q.answer} <= words
        for line in s.captions:
            assert set(line.split()) <= words


@pytest.mark.parametrize("size", [64, 96])
def test_boxes_lie_inside_and_fit_what_is_drawn(size: int) -> None:
    for i in range(150):
        s = scene("test", i, size=size)
        assert s.image.shape == (size, size, 3)
        for number, o in enumerate(s.objects):
            x0, y0, x1, y1 = o.box
            assert 0 <= x0 < x1 <= size
            assert 0 <= y0 < y1 <= size
            ys, xs = np.nonzero(s.owner == number)
            assert len(xs) > 0, "no object may vanish behind the others"
            assert (xs.min(), ys.min()) >= (x0, 0)
            assert xs.max() < x1
            assert y0 <= ys.min()
            assert ys.max() < y1
        top = s.objects[-1]
        ys, xs = np.nonzero(s.owner == len(s.objects) - 1)
        assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == top.box


def test_held_out_pairs_never_train_the_detector(scenes: list[Scene]) -> None:
    held = set(HELD_OUT_PAIRS)
    assert {c for c, _ in held} < set(COLOURS)
    assert {s for _, s in held} == set(SHAPES)
    for i in range(MANY):
        assert not held & {(o.colour, o.shape) for o in scene("train", i, size=96, exclude=HELD_OUT_PAIRS).objects}
    assert held <= {(o.colour, o.shape) for s in scenes for o in s.objects}


def test_detection_targets_and_coco_agree() -> None:
    some = [scene("test", i, size=96) for i in range(20)]
    data = coco(some)
    assert len(data["annotations"]) == sum(len(s.objects) for s in some)
    rows = iter(data["annotations"])
    for s in some:
        labels, boxes = targets(s)
        for label, (cx, cy, w, h) in zip(labels, boxes, strict=True):
            a = next(rows)
            assert (a["image_id"], a["category_id"]) == (s.index, label)
            assert data["categories"][label]["name"] == " ".join(PAIRS[label])
            assert np.allclose(a["bbox"], [(cx - w / 2) * 96, (cy - h / 2) * 96, w * 96, h * 96], atol=1e-4)


def test_bad_requests_are_named() -> None:
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        scene("dev", 0)
    with pytest.raises(ValueError, match="index"):
        scene("train", -1)
