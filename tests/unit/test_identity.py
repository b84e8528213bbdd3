"""Identities: an invite is read as it was made or refused, whatever happened to it on its way, and no error shows a secret."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import string
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import zmq

from ifmesh import identity
from ifmesh.errors import Misconfigured
from ifmesh.identity import Identity, dumps, generate, is_key, loads, read, write

SERVER = generate()
ANNA = Identity("anna", "client", generate(), SERVER.public, "tcp://10.0.0.7:7640")


def invite(*told: object) -> str:
    """With a good checksum, whatever it says."""
    body = json.dumps(told).encode() if len(told) != 1 or not isinstance(told[0], bytes) else told[0]
    check = hashlib.sha256(b"ifmesh1." + body).digest()[:8]
    return "ifmesh1." + base64.urlsafe_b64encode(body + check).decode().rstrip("=")


def refused(text: str) -> str:
    """Why; and it shows nothing of what it was given."""
    with pytest.raises(Misconfigured) as caught:
        loads(text)
    assert ANNA.keys.secret not in str(caught.value)
    assert not any(text[at : at + 12] in str(caught.value) for at in range(9, max(9, len(text) - 12)))
    assert caught.value.__cause__ is None
    return str(caught.value)


def test_a_pair_is_one() -> None:
    keys = generate()
    assert zmq.curve_public(keys.secret.encode()).decode() == keys.public
    assert generate() != keys


def test_there_and_back() -> None:
    for each in (ANNA, replace(ANNA, role="worker:stage_one", coordinator=""), replace(ANNA, role="coordinator", name="a.b-c_9")):
        text = dumps(each)
        assert loads(text) == each
        assert text.startswith("ifmesh1.")
        assert not set(text) - set(string.ascii_letters + string.digits + "-_.")  # nothing that a shell or a chat would change


def test_a_secret_is_not_shown() -> None:
    assert ANNA.keys.secret not in repr(ANNA) + str(ANNA) + repr(ANNA.keys) + f"{ANNA.keys}"
    assert ANNA.keys.public in repr(ANNA)


@pytest.mark.parametrize(
    "wrapped",
    [
        "{}\n",
        "\r\n  {}\t\n\n",
        "`{}`",
        '"{}"',
        "\ufeff{}\n",
    ],
)
def test_what_clings_to_a_pasted_line_does_no_harm(wrapped: str) -> None:
    assert loads(wrapped.format(dumps(ANNA))) == ANNA


def test_a_line_that_a_mail_has_wrapped_is_one_line() -> None:
    text = dumps(ANNA)
    assert loads("\n> ".join([text[:70], text[70:140], text[140:]]).replace("> ", " ")) == ANNA
    assert "damaged" in refused("\n> ".join([text[:70], text[70:140], text[140:]]))


def test_a_truncated_one_is_damaged() -> None:
    text = dumps(ANNA)
    for length in range(len(text)):
        said = refused(text[:length])
        assert "damaged" in said or "begins with ifmesh1." in said


def test_a_flipped_bit_is_found() -> None:
    text = dumps(ANNA)
    for at in range(len(text)):
        for bit in range(7):
            flipped = text[:at] + chr(ord(text[at]) ^ 1 << bit) + text[at + 1 :]
            try:
                assert loads(flipped) == ANNA, "another identity"
                assert not flipped[at].strip(identity._AROUND + string.whitespace), "and it was not said"
            except Misconfigured:
                pass


def test_letters_that_changed_places_are_found() -> None:
    text, rng = dumps(ANNA), random.Random(5)
    for _ in range(300):
        a, b = sorted(rng.sample(range(8, len(text)), 2))
        if text[a] != text[b]:
            assert "damaged" in refused(text[:a] + text[b] + text[a + 1 : b] + text[a] + text[b + 1 :])


def test_another_version_is_named() -> None:
    assert "another version of ifmesh" in refused(dumps(ANNA).replace("ifmesh1.", "ifmesh2."))
    assert "begins with ifmesh1." in refused("hunter2-hunter2-hunter2")
    assert "begins with ifmesh1." in refused("")


S, P = ANNA.keys.secret, SERVER.public


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (("anna", "client", S, P), "not what this version"),
        (("anna", "client", S, P, "", ""), "not what this version"),
        (("anna", "client", S, P, 7), "not what this version"),
        (("anna", None, S, P, ""), "not what this version"),
        (({"name": "anna"},), "not what this version"),
        (("", "client", S, P, ""), "name: 1 to 64"),
        (("../../etc", "client", S, P, ""), "name: 1 to 64"),
        (("-x", "client", S, P, ""), "name: 1 to 64"),
        (("anna\n", "client", S, P, ""), "name: 1 to 64"),
        (("a" * 65, "client", S, P, ""), "name: 1 to 64"),
        (("anna", "king", S, P, ""), "no such role"),
        (("anna", "worker:stage_nine", S, P, ""), "no such role"),
        (("anna", "client", S[:-1], P, ""), "no key"),
        (("anna", "client", "#" * 40, P, ""), "no key"),
        (("anna", "client", S, "é" * 40, ""), "no key"),
        (("anna", "client", S, P, "http://x"), "no address"),
        (("anna", "client", S, P, "tcp://a b:1"), "no address"),
        (("anna", "client", S, P, "tcp://\ud800:1"), "no address"),
        (("anna", "client", S, P, "tcp://10.0.0.7:1\n"), "no address"),
        ((b"[" * 3000,), "damaged"),
        ((b"\xff\xfe",), "damaged"),
        ((b"",), "damaged"),
        ((b"1" * 3000,), "not what this version"),
    ],
)
def test_an_invite_with_a_good_checksum_is_checked_all_the_same(told: tuple[object, ...], said: str) -> None:
    assert said in refused(invite(*told))


def test_too_long_is_said_at_once() -> None:
    assert "at most 4096" in refused("ifmesh1." + "A" * 10_000_000)


def test_what_could_not_be_read_is_not_written() -> None:
    for wrong in (replace(ANNA, name="a b"), replace(ANNA, role=""), replace(ANNA, server=""), replace(ANNA, coordinator="somewhere")):
        with pytest.raises(Misconfigured):
            dumps(wrong)


def test_keys_are_told_from_what_only_looks_like_one() -> None:
    assert is_key(SERVER.public)
    assert is_key("0" * 40)
    for text in ("", SERVER.public[1:], SERVER.public + "0", "#" * 40, " " * 40, "~" * 40):
        assert not is_key(text)


# ---- files


def test_a_file_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "anna.key"
    before = os.umask(0)
    try:
        write(path, ANNA)
        write(path, replace(ANNA, name="anna2"))
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read(path).name == "anna2"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666, 0o610, 0o602])
def test_a_file_that_is_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "anna.key"
    write(path, ANNA)
    path.chmod(mode)
    with pytest.raises(Misconfigured, match=rf"\(mode {mode:04o}\): chmod 600 {path}"):
        read(path)
    path.chmod(0o400)
    assert read(path) == ANNA


def test_what_is_no_identity_file_is_said(tmp_path: Path) -> None:
    path = tmp_path / "it"
    with pytest.raises(Misconfigured, match="No such file"):
        read(path)
    os.mkfifo(path, 0o600)
    with pytest.raises(Misconfigured, match="not a file"):  # and does not wait for somebody to write
        read(path)
    path.unlink()
    path.mkdir(0o700)
    with pytest.raises(Misconfigured, match=r"it: (Is a directory|not a file)"):
        read(path)
    path.rmdir()
    path.touch(0o600)
    path.write_bytes(b"\xff\x00" * 50_000_000)
    with pytest.raises(Misconfigured, match=r"it: invite: "):
        read(path)


def test_a_disk_without_room_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "anna.key"
    write(path, ANNA)
    code = f"""
import resource
from pathlib import Path
from ifmesh import identity
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
found = identity.read(Path({str(path)!r}))
resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
try:
    identity.write(Path({str(path)!r}), found)
except OSError:
    print("not written")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "not written\n", done.stderr
    assert read(path) == ANNA
    assert list(tmp_path.iterdir()) == [path]


def test_a_tag_tells_a_key() -> None:
    tags = {identity.tag(identity.generate().public) for _ in range(20)}
    assert len(tags) == 20
    assert {len(tag) for tag in tags} == {16}
