"""Masks in a job of Spark, by a pandas UDF: python spark_masks.py model.onnx photos masks.parquet

On a cluster, photos and masks.parquet are URLs that Spark reads and writes, and this library is installed everywhere.
"""

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from pyspark.sql import SparkSession
from pyspark.sql.functions import pandas_udf

import runtime

COLUMNS = ["mask", "foreground", "error"]


def row(answer: runtime.Segmentation | Exception) -> tuple[bytes | None, float | None, str | None]:
    """Return the columns of one image: the PNG of its mask, the share of its foreground, and what is wrong with it."""
    if isinstance(answer, runtime.UnetError):
        return None, None, str(answer)
    assert isinstance(answer, runtime.Segmentation)
    content = io.BytesIO()
    answer.save(content, format="mask")
    return content.getvalue(), answer.area() / answer.mask.size, None


def main(model: str, photos: str, out: str) -> None:
    # 16 images at once, not 10,000: a batch is held in memory.
    spark = SparkSession.builder.config("spark.sql.execution.arrow.maxRecordsPerBatch", 16).getOrCreate()
    content = spark.sparkContext.broadcast(Path(model).read_bytes())

    @pandas_udf("mask binary, foreground double, error string")
    def segment(batches: Iterator[pd.Series]) -> Iterator[pd.DataFrame]:
        with runtime.Predictor(content.value, threads=1) as predictor:  # once for each task; each core has one
            for batch in batches:
                answers = predictor.stream([bytes(image) for image in batch], workers=1, errors="yield")
                yield pd.DataFrame([row(answer) for answer in answers], columns=COLUMNS)

    images = spark.read.format("binaryFile").load(photos)
    answers = images.select("path", segment("content").alias("answer")).select("path", "answer.*")
    answers.write.mode("overwrite").parquet(out)
    failed = spark.read.parquet(out).where("error is not null").select("path", "error").collect()
    print(f"{images.count() - len(failed)} masks in {out}", *(": ".join(one) for one in failed), sep="\n")
    spark.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
