"""What may be probed, and how much of it at once; how it goes is told in tests/broker/stories/probe.txt."""

from __future__ import annotations

import pytest

from ifmesh.broker import Broker
from ifmesh.cascade import IF
from ifmesh.commands import Policy, Send
from ifmesh.crew import WORDS
from ifmesh.protocol import Endpoint, Hello, Probe, Probed, Reach, Reached
from ifmesh.survey import BYTES, FIRST, LAST, MOST, SIZE


def mesh() -> Broker:
    broker = Broker(IF, 1, (Endpoint("hub", "ipc://hub"), Endpoint("", "tcp://hub")), Policy(silence=1000.0))
    for name, stage, host in (("enc", "encoder", "hub"), ("one", "stage_one", "far"), ("twin", "stage_two", "a"), ("twin", "guard", "b")):
        ends = (Endpoint(host, f"ipc://{name}", f"key of {stage}"), Endpoint("", f"tcp://{name}", f"key of {stage}"))
        broker.receive(0.0, f"{name}.{stage}".encode(), Hello(stage, f"{name}.{stage}", name, 1, host, "cpu", ends, 2, ""))
    return broker


def asked(broker: Broker, probe: Probe, now: float = 1.0) -> list[object]:
    """What it leads to; the books balance."""
    commands = broker.receive(now, b"ann", probe)
    broker.check()
    return [c.message for c in commands if isinstance(c, Send)]


@pytest.mark.parametrize(
    ("probe", "why"),
    [
        (Probe(1, "nobody", "enc"), "no service of the name 'nobody'"),
        (Probe(1, "enc", "x" * 60_000), f"no service of the name '{'x' * WORDS}'"),
        (Probe(1, "enc", "twin"), "2 services of the name 'twin'"),
        (Probe(1, "enc", "enc"), "pushes nothing to itself"),
        (Probe(1, "coordinator", "coordinator"), "pushes nothing to itself"),
        (Probe(1, "enc", "one", SIZE + 1, 1), f"of at most {SIZE} bytes"),
        (Probe(1, "enc", "one", -1, 1), "of at most"),
        (Probe(1, "enc", "one", 1, -1), "of at most"),
        (Probe(1, "enc", "one", 0, 5), "of at most"),
        (Probe(1, "enc", "one", 5, 0), "of at most"),
        (Probe(1, "enc", "one", 1 << 20, BYTES >> 19), f"{BYTES} in all"),
        (Probe(1, "enc", "one", 2**62, 2**62), f"{BYTES} in all"),
    ],
)
def test_what_may_not_be_probed_is_said(probe: Probe, why: str) -> None:
    broker = mesh()
    (told,) = asked(broker, probe)
    assert isinstance(told, Probed)
    assert why in told.error
    assert broker._surveys == {}


def test_only_so_many_at_once_and_there_is_room_again() -> None:
    broker = mesh()
    for n in range(MOST):
        assert any(isinstance(m, Reach) for m in asked(broker, Probe(n, "enc", "one")))
    (full,) = asked(broker, Probe(99, "enc", "one"))
    assert isinstance(full, Probed)
    assert f"{MOST} probes are under way" in full.error
    ended = [c.message for c in broker.tick(1.0 + FIRST) if isinstance(c, Send) and isinstance(c.message, Probed)]
    assert [m.number for m in ended] == list(range(MOST))
    broker.check()
    assert any(isinstance(m, Reach) for m in asked(broker, Probe(99, "enc", "one"), 10.0))


def test_the_address_is_that_which_the_source_tries() -> None:
    broker, urls = mesh(), {}
    for source, target in (("enc", "one"), ("coordinator", "enc"), ("enc", "coordinator"), ("one", "coordinator"), ("coordinator", "one")):
        asked(broker, Probe(1, source, target))
        ((token, survey),) = broker._surveys.items()
        urls[source, target] = survey.url
        broker._reached(1.0, b"", Reached(survey.source, token))
        broker.check()
    assert list(urls.values()) == ["tcp://one", "ipc://enc", "ipc://hub", "tcp://hub", "tcp://one"]


def test_one_that_goes_on_and_on_is_over_some_time() -> None:
    broker = mesh()
    asked(broker, Probe(1, "enc", "one"))
    ((token, survey),) = broker._surveys.items()
    survey.arrived = True
    now, told = 1.0, list[object]()
    while (due := broker.wakeup()) is not None and not told:
        now = max(now, due)
        told = [c.message for c in broker.tick(now) if isinstance(c, Send) and isinstance(c.message, Probed)]
        broker.check()
    assert now == 1.0 + LAST
    assert token not in broker._surveys
