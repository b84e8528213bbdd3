"""The picture world: deterministic, in a small language, and what is held out stays out."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from ifmesh_services.nano.batches import Batch, picture, pixels
from ifmesh_services.nano.painter import paint
from ifmesh_services.nano.scenes import COLOURS, MARGIN, POSITIONS, SHAPES, SIZES, held_out, questions, scene
from ifmesh_services.nano.texts import LENGTH, ShortTexts, Texts
from ifmesh_services.nano.wording import caption, captions, vocabulary


def test_it_is_as_large_as_it_should_be() -> None:
    assert (len(SHAPES), len(COLOURS)) == (8, 12)
    assert 120 <= len(vocabulary()) <= 180
    tints = [np.array(each) for each in COLOURS.values()]
    assert min(np.linalg.norm(a - b) for i, a in enumerate(tints) for b in tints[:i]) > 80


def test_the_same_seed_gives_the_same_scenes_pictures_and_words() -> None:
    one, other = (random.Random(5) for _ in range(2))
    first, second = scene(one), scene(other)
    assert first == second
    assert paint(first, 64).tobytes() == paint(second, 64).tobytes()
    assert caption(first, one) == caption(second, other)
    assert list(captions(20, seed=1)) == list(captions(20, seed=1)) != list(captions(20, seed=2))


@pytest.mark.parametrize("shape", SHAPES)
def test_an_object_lies_where_it_is_said_and_within_the_picture(shape: str) -> None:
    draw = random.Random(shape)
    for position, (column, row) in POSITIONS.items():
        for size in SIZES:
            made = scene(draw, (shape, "white", "black"), size, position)
            assert made.radius + MARGIN <= min(made.x, made.y, 1 - made.x, 1 - made.y) + 1e-9
            for at, side in ((made.x, column), (made.y, row)):
                assert (at - 0.5) * side > 0.1 if side else abs(at - 0.5) < 0.05
            seen = np.asarray(paint(made, 128).convert("L"), float) > 128
            rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
            assert (columns[0] + columns[-1] + 1) / 256 == pytest.approx(made.x, abs=0.015)
            assert 0.86 * made.radius - 0.01 < (max(np.ptp(rows), np.ptp(columns)) + 1) / 256 < made.radius + 0.01


def test_edges_are_antialiased() -> None:
    made = scene(random.Random(1), ("circle", "white", "black"))
    assert len(np.unique(np.asarray(paint(made, 64).convert("L")))) > 6


def test_a_part_of_a_picture_is_that_part() -> None:
    made = scene(random.Random(2), ("star", "red", "white"))
    whole, part = (np.asarray(each, int) for each in (paint(made, 256), paint(made, 64, (0.25, 0.5, 0.5, 0.75))))
    apart = np.abs(whole[128:192, 64:128] - part).max(axis=2)
    assert np.mean(apart > 64) < 0.01  # an edge of the polygon may fall a quarter of a pixel beside
    assert apart.mean() < 1


def test_pixels_go_there_and_back() -> None:
    made = paint(scene(random.Random(3)), 32)
    assert picture(pixels(made)).tobytes() == made.tobytes()
    assert float(pixels(made).abs().max()) <= 1


def test_three_hundred_questions_whose_kinds_training_never_sees() -> None:
    asked = questions()
    assert len({one["caption"] for one in asked}) == len(asked) == 300
    for key, known in (("shape", SHAPES), ("colour", COLOURS), ("background", COLOURS)):
        counts = Counter(one[key] for one in asked)
        assert set(counts) == set(known)
        assert min(counts.values()) >= 300 / len(known) / 1.5
    assert all(one["size"] in ("", *SIZES) and one["position"] in ("", *POSITIONS) for one in asked)
    assert len(held_out()) == 150
    drawn = {one.kind for step in range(60) for one in Batch("any", 0, step, 100).scenes}
    assert len(drawn) > 850  # of the 906 that are left
    assert not drawn & held_out()


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    def told(seed: int, step: int) -> tuple[object, ...]:
        batch = Batch("part", seed, step, 4)
        return batch.scenes, batch.texts, batch.boxes(0.25, 64), batch.spread(1000).tolist(), batch.noise(2).tolist()

    assert told(0, 7) == told(0, 7)
    assert len({str(told(seed, step)) for seed in (0, 1) for step in (7, 8)}) == 4


def test_both_tokenizers_know_every_word_and_have_room() -> None:
    long, short = Texts().tokenizer, ShortTexts().tokenizer
    assert long.unk_token_id not in long(" ".join(sorted(vocabulary()))).input_ids
    lengths = [max(len(long(text).input_ids), len(short(text).input_ids)) for text in captions(300, seed=9)]
    assert max(lengths) < LENGTH // 2
    assert long("a robot, 1234!").input_ids  # spelled out
