"""TensorFlow on a rank: import, thread count, distribution strategy, dtype policy (worker)."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from distml.errors import TrainingError
from distml.runtime import compat, environment


def usable_cpus() -> int:
    """Number of cores this process may use: its affinity, limited by the container's CPU quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    words = quota.read_text().split() if quota.exists() else ["max"]
    return cores if words[0] == "max" else max(1, min(cores, -(-int(words[0]) // int(words[1]))))


def import_tensorflow(use_gpu: bool, local_world_size: int) -> Any:
    """Import TensorFlow and Keras 3 and give this rank its share of the machine's threads."""
    environment.KERAS.apply()
    if not use_gpu:
        environment.CPU_WORKER.apply()
    with compat.imports():
        import keras
        import tensorflow as tf
    if not keras.__version__.startswith("3."):
        raise TrainingError(f"Keras {keras.__version__} was imported.", "Unset TF_USE_LEGACY_KERAS.")
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)
    tf.config.threading.set_intra_op_parallelism_threads(max(1, usable_cpus() // local_world_size))
    tf.config.threading.set_inter_op_parallelism_threads(2)
    return tf


def strategy(tf: Any, use_gpu: bool) -> Any:
    """Create the strategy over all ranks in TF_CONFIG: NCCL between GPUs, a gRPC ring between CPUs."""
    kinds = tf.distribute.experimental.CommunicationImplementation
    options = tf.distribute.experimental.CommunicationOptions(
        implementation=kinds.NCCL if use_gpu else kinds.RING
    )
    return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)


def precision(wanted: str, use_gpu: bool) -> str:
    """Return Keras's dtype policy: `auto` is bfloat16 where the processor or every GPU supports it natively.

    Elsewhere TensorFlow emulates it at a fraction of the speed of float32.
    """
    if wanted != "auto":
        return wanted
    return "mixed_bfloat16" if (_gpus_have_bfloat16() if use_gpu else _cpu_has_bfloat16()) else "float32"


def _gpus_have_bfloat16() -> bool:
    """Whether every GPU has compute capability 8.0 (Ampere) or higher."""
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    capabilities = [detail.get("compute_capability", (0, 0)) for detail in details]
    return bool(capabilities) and min(capabilities) >= (8, 0)


def _cpu_has_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the CPU flags of Linux on x86-64 list bfloat16; False where they cannot be read."""
    flags = re.search(r"^flags\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else None
    return bool(flags and {"avx512_bf16", "amx_bf16"} & set(flags[1].split()))
