"""Which arithmetic `precision: auto` chooses on this machine and on others."""

from __future__ import annotations

from pathlib import Path

import pytest

from distml.training import worker


@pytest.mark.parametrize(
    ("flags", "has"),
    [
        ("fpu sse2 avx512f avx512_bf16 avx512_vnni", True),
        ("fpu amx_bf16 amx_tile", True),
        ("fpu sse2 avx2 avx512f avx512_vnni", False),
        ("fpu xavx512_bf16x", False),
    ],
)
def test_bfloat16_support_is_read_from_the_processor_flags(tmp_path: Path, flags: str, has: bool) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nmodel name\t: avx512_bf16\nflags\t\t: {flags}\nbugs\t\t: none\n")
    assert worker._cpu_has_bfloat16(cpuinfo) is has


def test_a_processor_without_flags_has_no_bfloat16(tmp_path: Path) -> None:
    assert not worker._cpu_has_bfloat16(tmp_path / "absent")
    (tmp_path / "arm").write_text("processor\t: 0\nFeatures\t: fp asimd bf16\n")
    assert not worker._cpu_has_bfloat16(tmp_path / "arm")


@pytest.mark.parametrize("wanted", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_an_explicit_precision_is_used(wanted: str) -> None:
    assert worker.precision(wanted, use_gpu=False) == wanted


def test_auto_precision_depends_on_the_machine() -> None:
    assert worker.precision("auto", use_gpu=False) in ("float32", "mixed_bfloat16")
