from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distml.data import schema


def test_normalise_is_the_two_constants_in_float32() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    scaled = schema.normalise(pixels)
    assert scaled.dtype == np.float32
    assert scaled.shape == pixels.shape
    assert (scaled.min(), scaled.max()) == (0.0, 1.0)
    np.testing.assert_array_equal(scaled, schema.normalise(pixels.astype(np.float64)))
    np.testing.assert_allclose(scaled, pixels * schema.SCALE + schema.OFFSET, rtol=1e-6)


@pytest.mark.parametrize("shape", [(28, 28, 1), (3, 5, 3), (1, 1, 1), (2, 1, 7)])
def test_images_survive_the_table_and_the_file(shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (10, *shape), np.uint8)
    table = schema.to_table(images, np.arange(10, dtype=np.int32), np.arange(10))
    assert isinstance(table.schema.field("image").type, pa.FixedShapeTensorType)
    assert (table.schema.field("label").type, table.schema.field("row").type) == (pa.int32(), pa.int64())
    assert np.shares_memory(schema.to_images(table["image"]), images)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=3)
    back = pq.ParquetFile(pa.BufferReader(sink.getvalue())).read()
    assert back.schema == table.schema
    np.testing.assert_array_equal(schema.to_images(back["image"]), images)
    np.testing.assert_array_equal(schema.to_images(table.slice(4, 3)["image"]), images[4:7])
    np.testing.assert_array_equal(schema.to_images(pa.concat_tables([table, table])["image"])[10:], images)
    assert schema.to_images(table.slice(0, 0)["image"]).shape == (0, *shape)
