"""Promptness and exact words: each story is played again and compared.  IFMESH_REWRITE_STORIES=1 records them anew; read the diff."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.broker.faults import STORIES
from tests.broker.script import play


@pytest.mark.parametrize("story", STORIES, ids=lambda path: path.stem)
def test_the_story_goes_as_recorded(story: Path) -> None:
    text = story.read_text()
    played = play(text)
    if os.environ.get("IFMESH_REWRITE_STORIES"):
        story.write_text(played)
    else:
        assert played.splitlines() == text.splitlines()


def test_there_are_stories() -> None:
    assert len(STORIES) >= 15
