import json

import pyarrow as pa

from nami_amp_pipeline.delivery.destination import Field
from nami_amp_pipeline.delivery.json_destination import ANSWERS, JsonDestination

TOPIC = Field("topic", "topic", "Under which it files events.", is_secret=False, default="nami")


class Collector(JsonDestination):
    name = "collector"
    title = "the collector"
    fields = (*JsonDestination.fields, TOPIC)
    answers = {**ANSWERS, "409": "accepted"}  # it has this batch already

    def bodies(self, events):
        rows = events.select(["id", "body"]).to_pylist()
        about = {"topic": self.values["topic"]}
        return pa.array([json.dumps({"key": row["id"], "event": json.loads(row["body"]), **about}) for row in rows])
