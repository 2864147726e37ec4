"""One process of a batch prediction: reads parts, asks the model, writes the answers (batch process)."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distml import log
from distml.artifacts.predictor import Predictor
from distml.batch import reading
from distml.batch.parts import Part
from distml.data.folder import Folder
from distml.storage import Storage

COUNTS = b"distml"
"""Key of a written part's own metadata: a JSON object with `rows` and `failed`."""


@dataclass(frozen=True)
class Task:
    """What crosses to the processes.

    Args:
        data: Folder or file that is read.
        output: Folder that is written.
        model: Folder of the model's files below `output`, where every process finds them.
        sha256: Of the model.
        version: Of the model, None where it is not registered.
    """

    data: str
    output: str
    model: str
    sha256: str
    version: int | None


class Classifier:
    """Holds the model and classifies parts; Ray Data makes one per process. Final."""

    def __init__(self, task: Task) -> None:
        log.configure("batch")
        self._version = task.version
        self._folder, self._output = Folder(task.data), Storage(task.output)
        with tempfile.TemporaryDirectory(prefix="distml-batch-") as name:
            self._output.download(name, task.model)
            self._predictor = Predictor.load(Path(name), task.sha256)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Classify the parts of a batch; returns their rows and how many of them could not be read."""
        counts = [self._classify(Part.from_json(str(text))) for text in batch["part"]]
        return {
            "rows": np.array([rows for rows, _ in counts]),
            "failed": np.array([bad for _, bad in counts]),
        }

    def _classify(self, part: Part) -> tuple[int, int]:
        tables = [self._answered(rows) for rows in reading.read(self._folder, part, self._predictor.pictures)]
        table = pa.concat_tables(tables, promote_options="permissive")
        counts = len(table), table["label"].null_count
        metadata = {COUNTS: json.dumps({"rows": counts[0], "failed": counts[1]})}
        sink = pa.BufferOutputStream()
        pq.write_table(table.replace_schema_metadata(metadata), sink, compression="zstd")
        self._output.write_bytes(sink.getvalue(), part.file)  # whole or not at all
        return counts

    def _answered(self, rows: reading.Rows) -> Any:
        """Answers beside the rows' identity; a column of theirs called like ours becomes `input_…`."""
        probabilities = self._predictor.predict(rows.images)
        labels = probabilities.argmax(1)
        places = np.flatnonzero(rows.readable)
        count = len(rows.readable)

        def spread(values: list[Any], kind: Any) -> Any:
            column: list[Any] = [None] * count
            for place, value in zip(places, values, strict=True):
                column[place] = value
            return pa.array(column, kind)

        answers = {
            "label": spread(labels.tolist(), pa.int32()),
            "class": spread([self._predictor.classes[label] for label in labels], pa.string()),
            "probability": spread(probabilities.max(1).tolist(), pa.float32()),
            "probabilities": spread(
                probabilities.tolist(), pa.list_(pa.float32())
            ),  # Arrow cannot read nulls of a fixed length back
            "model_version": pa.array([self._version] * count, pa.int32()),
            "error": pa.array(rows.errors, pa.string()),
        }
        named = {f"input_{name}" if name in answers else name: one for name, one in rows.identity.items()}
        return pa.table(named | answers)
