"""Puts load on a server by wrk, from loopback: requests a second, latencies, errors."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import BenchmarkError

_SCRIPT = """
local headers = {["Content-Type"] = "%s"}
local bodies, sent = {}, 0
for number = 1, %d do
  local file = io.open("%s/" .. number, "rb")
  bodies[number] = file:read("*a")
  file:close()
end
request = function()
  sent = sent + 1
  return wrk.format("POST", nil, headers, bodies[sent %% #bodies + 1])
end
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('\\n{"rps": %%f, "p50_ms": %%f, "p99_ms": %%f, "errors": %%d}\\n',
    summary.requests / (summary.duration / 1e6), latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    e.connect + e.read + e.write + e.timeout + e.status))
end
"""


@dataclass(frozen=True)
class Load:
    """Bodies to send in turn and wrk's script for them.

    Args:
        folder: Where both are.
    """

    folder: Path

    @classmethod
    def of(cls, images: int) -> Load:
        """A request with that many random 28x28 images, as JSON."""
        pixels = np.random.default_rng(0).integers(0, 256, (images, 28, 28)).tolist()
        return cls.bodies([json.dumps({"instances": pixels}).encode()], "application/json")

    @classmethod
    def open_inference(cls, images: int) -> Load:
        """The same images by the Open Inference Protocol, also as JSON."""
        pixels = np.random.default_rng(0).integers(0, 256, images * 28 * 28).tolist()
        shape = {"name": "image", "datatype": "UINT8", "shape": [images, 28, 28, 1]}
        return cls.bodies([json.dumps({"inputs": [{**shape, "data": pixels}]}).encode()], "application/json")

    @classmethod
    def bodies(cls, bodies: Sequence[bytes], content_type: str) -> Load:
        """Requests with these bodies, one after the other and again."""
        if shutil.which("wrk") is None:
            raise BenchmarkError("wrk is not installed; Debian and Ubuntu have it as a package of that name")
        folder = Path(tempfile.mkdtemp(prefix="distml-load-"))
        for number, body in enumerate(bodies, 1):
            (folder / str(number)).write_bytes(body)
        (folder / "wrk.lua").write_text(_SCRIPT % (content_type, len(bodies), folder))
        return cls(folder)

    def run(self, url: str, connections: int, seconds: int) -> dict[str, Any]:
        """Send requests over so many connections for so long.

        Returns:
            `rps`, `p50_ms`, `p99_ms` and `errors`, which counts answers beyond 399, too.
        """
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s"]
        done = subprocess.run(
            [*command, "-s", str(self.folder / "wrk.lua"), url], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise BenchmarkError(f"wrk: {done.stderr.strip() or done.stdout.strip()}")
        result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return result
