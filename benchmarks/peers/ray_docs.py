"""Ray Train as its documentation shows it for TensorFlow: `TensorflowTrainer`, legacy Keras `fit`, `to_tf`.

python -m benchmarks.peers.ray_docs --workers 2 --epochs 4 --batch 256 --data FOLDER
"""

from __future__ import annotations

import json
import os
import secrets
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.peers import work


def loop(settings: dict[str, Any]) -> None:
    """What one worker runs; rank 0 leaves the seconds of each epoch in a file.

    Args:
        settings: `epochs`, `per_worker_batch` and `report`, the path of that file.
    """
    import ray.train
    import tensorflow as tf
    from ray.train.tensorflow.keras import ReportCheckpointCallback

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    with strategy.scope():
        model = work.compiled_convnet()
    shard = ray.train.get_dataset_shard("train")
    seconds = []
    for _ in range(settings["epochs"]):
        began = time.time()
        batches = shard.to_tf(
            feature_columns="image",
            label_columns="label",
            batch_size=settings["per_worker_batch"],
            drop_last=True,
        )
        model.fit(work.whole(batches), epochs=1, verbose=0, callbacks=[ReportCheckpointCallback()])
        seconds.append(time.time() - began)
    if ray.train.get_context().get_world_rank() == 0:
        Path(settings["report"]).write_text(json.dumps(seconds))


def dataset(folder: str) -> Any:
    """The training split as a materialised Ray dataset with the columns `image` and `label`."""
    import pyarrow as pa
    import ray.data

    images, labels = work.train_rows(folder)
    named = ray.data.from_arrow(pa.table({"label": labels})).zip(ray.data.from_numpy(images))
    return named.rename_columns({"data": "image"}).repartition(16).materialize()


def train(chosen: Any, folder: str) -> list[float]:
    """Run the trainer with its storage in a folder; returns the seconds of each epoch."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.tensorflow import TensorflowTrainer

    report = os.path.join(folder, "seconds.json")
    settings = {
        "epochs": chosen.epochs,
        "per_worker_batch": chosen.batch // chosen.workers,
        "report": report,
    }
    TensorflowTrainer(
        loop,
        train_loop_config=settings,
        datasets={"train": dataset(chosen.data)},
        scaling_config=ScalingConfig(num_workers=chosen.workers, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(storage_path=os.path.join(folder, "runs")),
    ).fit()
    seconds: list[float] = json.loads(Path(report).read_text())
    return seconds


def main() -> int:
    """Entry point of the driver."""
    began = time.time()
    chosen = work.arguments(__doc__ or "")
    os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="-1", TF_USE_LEGACY_KERAS="1")
    # Ray would otherwise write a token into the home folder, and report its use to the outside.
    os.environ.update(
        RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32), RAY_USAGE_STATS_ENABLED="0"
    )
    import ray

    # Two CPUs more than workers: Ray Data gets what training leaves.
    ray.init(num_cpus=chosen.workers + 2, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        seconds = train(chosen, folder)
        wall_s = time.time() - began
    ray.shutdown()
    settings = (chosen.workers, chosen.epochs, chosen.batch)
    samples_per_s = work.TRAIN_ROWS / work.steady(seconds)
    work.Figures("ray_docs", *settings, samples_per_s, seconds[0], wall_s).print()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
