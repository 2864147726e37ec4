"""What Ray writes for HAProxy is kept to the host that was asked for."""

from __future__ import annotations

import pytest

from distml.serving import haproxy

# The lines that matter of what Ray 2.60 writes.
WRITTEN = """defaults
    mode http
    log global
    option httplog
frontend http_frontend
    bind *:8000
    log 127.0.0.1:514 local0
backend http-distml
    server one 127.0.0.1:30000 check
    server two 10.0.0.7:30000 check
listen stats
  bind :8404
"""


@pytest.mark.parametrize(
    ("host", "here"),
    [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("10.0.0.5", "10.0.0.5"), ("0.0.0.0", "127.0.0.1")],
)
def test_ports_and_replicas_of_this_machine_are_at_the_host(host: str, here: str) -> None:
    lines = [line.strip() for line in haproxy.corrected(WRITTEN, host, "10", "abns@x").splitlines()]
    assert [line for line in lines if line.startswith("bind")] == [
        f"bind {host}:8000",
        f"bind {host}:8404",
        "bind abns@x",
    ]
    assert [line for line in lines if line.startswith("server")] == [
        "server nobody abns@x backup",
        f"server one {here}:30000 check port 31001",
        "server two 10.0.0.7:30000 check port 31001",
    ]


def test_a_request_has_its_time_and_leaves_no_log() -> None:
    text = haproxy.corrected(WRITTEN, "127.0.0.1", "7.5", "abns@x")
    assert "timeout http-request 7.5s" in text
    assert "httplog" not in text
    assert ":514" not in text
    assert "del-header x-request-timeout-seconds" in text
