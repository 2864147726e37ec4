"""Asks an endpoint at a fixed rate and prints two lines for each request; runs in a pod, with Python alone.

One when it begins, so that one without an end is seen, and one when it ends.
"""

from __future__ import annotations

import http.client
import itertools
import os
import struct
import sys
import threading
import time
import zlib

PATIENCE_S = 30.0


def picture(side: int = 28) -> bytes:
    """A gray PNG."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    rows = b"".join(b"\0" + bytes((7 * row + column) % 256 for column in range(side)) for row in range(side))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def body() -> bytes:
    """A form with the picture."""
    head = '--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\nContent-Type: image/png'
    return head.encode() + b"\r\n\r\n" + picture() + b"\r\n--x--\r\n"


def ask(host: str, form: bytes, headers: dict[str, str]) -> int:
    """Ask on a connection of its own; 0 where there is no answer."""
    try:
        connection = http.client.HTTPConnection(host, timeout=PATIENCE_S)
        try:
            connection.request("POST", "/predict/image", form, headers)
            response = connection.getresponse()
            response.read()
            return response.status
        finally:
            connection.close()
    except (OSError, http.client.HTTPException):
        return 0


def main(host: str, rate: float) -> None:
    """Ask until this process is ended: `NUMBER START`, and at its end `NUMBER START STATUS SECONDS`."""
    form, headers = body(), {"Content-Type": "multipart/form-data; boundary=x"}
    if os.environ.get("API_KEY"):
        headers["Authorization"] = f"Bearer {os.environ['API_KEY']}"
    lock = threading.Lock()

    def tell(*words: object) -> None:
        with lock:
            print(*words, flush=True)

    def one_request(number: int) -> None:
        began = time.time()
        tell(number, f"{began:.3f}")
        status = ask(host, form, headers)
        tell(number, f"{began:.3f}", status, f"{time.time() - began:.3f}")

    due = time.monotonic()
    for number in itertools.count():
        threading.Thread(target=one_request, args=[number], daemon=True).start()
        due += 1 / rate
        time.sleep(max(0.0, due - time.monotonic()))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
