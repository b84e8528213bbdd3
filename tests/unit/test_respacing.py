"""Lists by name and by respacing string.  That the names are diffusers' lists is tested where diffusers is."""

from __future__ import annotations

import hashlib
import random

import pytest

from ifmesh import respacing

PINNED = {  # from a run of the original's own space_timesteps(1000, ...): how many, the first three, the last, and of them all a digest
    "50": (50, (999, 979, 958), 0, "dd3689f175c11697"),
    "150": (150, (999, 992, 986), 0, "309fbbaa540479dc"),
    "10,10,10,0,5": (35, (999, 949, 900), 0, "a7a8196d9845e0a8"),
    "0,0,3": (3, (999, 833, 667), 667, "1087b8526b437ace"),
    "7,333,0": (340, (666, 665, 664), 0, "eb94aae51fc81d5e"),
    "1": (1, (0,), 0, "d0bca111f8628137"),
    "2": (2, (999, 0), 0, "6756be8047fcaef1"),
    "ddim50": (50, (980, 960, 940), 0, "955bac65b1d7d984"),
    "ddim6": (6, (835, 668, 501), 0, "f3ef776b0e157761"),
}


@pytest.mark.parametrize("schedule", PINNED)
def test_the_originals_own_answers(schedule: str) -> None:
    made = respacing.timesteps(schedule)
    count, first, last, digest = PINNED[schedule]
    assert (len(made), made[:3], made[-1]) == (count, first, last)
    assert hashlib.sha256(repr(list(made)).encode()).hexdigest()[:16] == digest


@pytest.mark.parametrize("name", respacing.NAMED)
def test_a_name_has_as_many_steps_as_it_says(name: str) -> None:
    made = respacing.timesteps(name)
    assert len(made) == int(name.lstrip("fasmrtupe"))
    assert made == respacing.timesteps(respacing.NAMED[name])
    assert (made[0], made[-1]) == (999, 0)


def test_each_section_gives_what_it_is_asked_for() -> None:
    dice = random.Random(5)
    for _ in range(300):
        sections = dice.randrange(1, 60)
        counts = [dice.randrange(0, 1000 // sections + 1) for _ in range(sections)]
        counts[dice.randrange(sections)] = 2 if sections < 60 else 1
        made = respacing.timesteps(" , ".join(map(str, counts)))
        assert list(made) == sorted(set(made), reverse=True)
        ends = [n * (1000 // sections) + min(n, 1000 % sections) for n in range(sections + 1)]
        assert ends[-1] == 1000
        for count, first, end in zip(counts, ends, ends[1:], strict=False):
            inside = [t for t in made if first <= t < end]
            assert len(inside) == count
            assert count < 1 or inside[-1] == first
            assert count < 2 or inside[0] == end - 1


@pytest.mark.parametrize(
    ("schedule", "remedy"),
    [
        ("fast28", "did you mean fast27"),
        ("Smart50", "did you mean smart50"),
        ("slow", "one of fast27, smart27"),
        ("", "one of fast27"),
        ("10,,10", "steps per section as in 10,10,3,2,2"),
        ("10,-3", "a number of steps"),
        ("\N{ARABIC-INDIC DIGIT THREE}", "a number of steps"),
        ("x" * 100_000, "or ddimN"),
        ("1," * 50_000, "or ddimN"),
        ("0", "leaves no timestep"),
        ("0,0", "leaves no timestep"),
        ("1001", "section 1 of 1 holds 1000 timesteps: at most so many steps, not 1001"),
        ("5,334,5", "section 2 of 3 holds 333 timesteps"),
        ("1," * 1000 + "1", "section 1001 of 1001 holds 0"),
        ("ddim300", "ddim250 or ddim334"),
        ("ddim1", "ddim2"),
        ("ddim9999", "ddim1000"),
        ("ddim", "or ddimN"),
    ],
    ids=lambda given: given[:12],
)
def test_what_is_no_schedule(schedule: str, remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy):
        respacing.timesteps(schedule)
