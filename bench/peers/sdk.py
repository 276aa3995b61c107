"""What a person would write with Amplitude's SDK: a loop over the rows. Runs in the SDK's environment.

``python sdk.py [BATCH]``; the file and the URL are in ``BENCH_EVENTS`` and ``BENCH_URL``.
"""

import json
import os
import sys

import duckdb
from amplitude import Amplitude, BaseEvent, Config

TYPES = (
    "device.impression", "device.transaction", "user.journey.trial.converted", "user.journey.trial.did_not_convert",
    "user.journey.trial.started", "user.subscription.cancelled", "user.subscription.expired",
    "user.subscription.in_grace_period", "user.subscription.paused", "user.subscription.purchased",
    "user.subscription.renewal_in_grace_period", "user.subscription.renewed", "user.subscription.resumed",
)  # fmt: skip


def main() -> None:
    config = Config(server_url=os.environ["BENCH_URL"])
    if len(sys.argv) > 1:
        config.flush_queue_size = int(sys.argv[1])
    client = Amplitude(os.environ["AMPLITUDE_API_KEY"], config)
    with duckdb.connect(os.environ["BENCH_EVENTS"], read_only=True) as connection:
        rows = connection.execute(
            "SELECT id, event_type, user_id, epoch_ms(created_date), payload FROM nami_events "
            f"WHERE event_type IN {TYPES} ORDER BY created_date, id"
        )
        while batch := rows.fetchmany(10_000):
            for event_id, event_type, user_id, time, payload in batch:
                fields = json.loads(payload)
                client.track(
                    BaseEvent(
                        event_type=event_type,
                        user_id=user_id,
                        time=time,
                        insert_id=event_id,
                        event_properties={
                            name: value
                            for name, value in fields.items()
                            if isinstance(value, str | int | float | bool)
                            and name not in ("id", "event_type", "created_date", "user_id", "device_id")
                        },
                    )
                )
    client.flush()
    client.shutdown()
    # All is sent and answered; its timer's thread would keep the process for up to 10 seconds more.
    os._exit(0)


if __name__ == "__main__":
    main()
