from uuid import uuid4

from pyarrow import csv

from nami_amp_pipeline.testing import WarehouseSuite
from nami_amp_pipeline.testing.warehouse import SCHEMA


class TestCsv(WarehouseSuite):
    def address(self, folder):
        csv.write_csv(SCHEMA.empty_table(), folder / "empty.csv")
        return f"csv://{folder}"

    def load(self, address, rows):
        csv.write_csv(rows, f"{address.removeprefix('csv://')}/{uuid4()}.csv")

    def missing(self, folder):
        return f"csv://{folder}/none"
