"""A service on several machines, as processes of this one: workers of Celery, Redis and an object storage."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import psycopg2
import requests
import yaml

from nami_amp_pipeline_tests.support.postgres import Postgres
from nami_amp_pipeline_tests.support.service import ROOT, Service, free_port, wait_for

WORKERS: Final = ("worker-1", "worker-2")
REDIS: Final = "redis"
BUCKET: Final = "object-store"
"""What is in front of the object storage: that keeps its objects in memory, and is never killed itself."""

_BEHIND: Final = "moto"
_FRONT: Final = Path(__file__).with_name("front.py")


def celery_compose() -> dict[str, Any]:
    """The services of ``deploy/celery/compose.yaml``."""
    services: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "celery" / "compose.yaml").read_text())["services"]
    return services


def redis_command(folder: Path, port: int) -> list[str]:
    """Redis as the compose file starts it, with its files in a folder of ours."""
    return [*celery_compose()["redis"]["command"], "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]


def worker_command(name: str) -> list[str]:
    """A worker as the compose file starts it."""
    return [*celery_compose()["worker"]["command"], "--hostname", f"{name}@here"]


def can_be_apart() -> bool:
    """Whether processes can be given a machine's name of their own, which takes the rights of root on Linux."""
    return subprocess.run(["unshare", "--uts", "true"], capture_output=True, check=False).returncode == 0


def _machine(name: str) -> list[str]:
    """Runs a command as if on another machine: else others see at once that its process is gone, and wait no lease."""
    return ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', name] if can_be_apart() else []


class Machines:
    """The processes, and how each is started again.

    Args:
        folder: of everything.
        postgres: has the warehouse, the state store and Dagster's database.
        settings: of the pipeline, besides.

    Attributes:
        service: runs the processes.
    """

    def __init__(self, folder: Path, postgres: Postgres, **settings: str) -> None:
        broker, front, behind = free_port(), free_port(), free_port()
        # This process reads the same settings, and obstore reads the environment.
        os.environ |= {
            "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{front}",
        }  # fmt: skip
        self.service = Service.prepare(
            folder, postgres, CELERY_BROKER_URL=f"redis://127.0.0.1:{broker}/0", NAMI_AMP_SHARDS=str(len(WORKERS)),
            NAMI_AMP_DATA_URL="s3://files/nami", **{key: os.environ[key] for key in os.environ if key[:4] == "AWS_"},
            **settings,
        )  # fmt: skip
        self.service.environ["DAGSTER_HOME"] = str(folder / "deploy" / "celery")
        (folder / "redis").mkdir()
        self._ports = {REDIS: broker, BUCKET: front, _BEHIND: behind}
        self._commands = {
            REDIS: redis_command(folder / "redis", broker),
            BUCKET: [sys.executable, str(_FRONT), str(front), str(behind)],
            _BEHIND: [sys.executable, "-m", "moto.server", "--port", str(behind)],
        } | {
            # Each has a disk of its own, as on a machine of its own.
            name: [*_machine(name), "env", f"NAMI_AMP_HOME={folder / name}", *worker_command(name)]
            for name in WORKERS
        }

    def begin(self) -> None:
        """Starts all but the daemon."""
        running = self.service
        for name in (REDIS, _BEHIND, BUCKET):
            self.start(name)
        assert requests.put(f"http://127.0.0.1:{self._ports[_BEHIND]}/files", timeout=30).ok
        running.migrate()
        running.start("code-server")
        wait_for(lambda: running.answers(running.code_port), lambda: running.log("code-server"))
        for name in WORKERS:
            self.start(name)

    def start(self, name: str) -> None:
        """Starts one, for the first time or again; those that listen do so afterwards."""
        self.service.start(name, self._commands[name])
        if port := self._ports.get(name):
            wait_for(lambda: self.service.answers(port), lambda: self.service.log(name))

    def transfers(self) -> int:
        """How many requests to the object storage are under way."""
        signs = self.service.log_file(BUCKET).read_text()
        return max(0, signs.count("+") - signs.count("-"))

    def worker_of(self, process: int) -> str | None:
        """Which worker a process belongs to; None if it is gone."""
        try:
            group = os.getpgid(process)
        except ProcessLookupError:
            return None
        return next((name for name in WORKERS if self.service.group(name) == group), None)


class History:
    """Dagster's own tables, read while things happen: no page is as quick.

    Args:
        url: of Dagster's database.
    """

    def __init__(self, url: str) -> None:
        self._connection = psycopg2.connect(url)
        self._connection.autocommit = True

    def _ask(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        with self._connection.cursor() as cursor:
            cursor.execute(statement, values)
            return list(cursor.fetchall())

    def last(self) -> int:
        """The number of the newest event."""
        ((number,),) = self._ask("SELECT coalesce(max(id), 0) FROM event_logs")
        return int(number)

    def reached(self, shard: str, stage: str, after: int) -> str | None:
        """The id of a run of a shard that reached a stage since an event.

        Args:
            shard: such as ``1/2``.
            stage: ``queued`` (for the workers), ``taken`` (by one of them), or the name of a step.
            after: the number of the event.
        """
        signs = {
            "queued": "e.dagster_event_type = 'PIPELINE_STARTING'",
            "taken": "e.dagster_event_type = 'ENGINE_EVENT' AND e.event LIKE '%%Started process for run%%'",
        }
        # A run that began to read the warehouse before has nothing of what was loaded since.
        sign = signs.get(
            stage,
            "e.dagster_event_type = 'STEP_START' AND e.step_key = %s AND EXISTS (SELECT FROM event_logs b WHERE "
            "b.run_id = e.run_id AND b.dagster_event_type = 'STEP_START' AND b.step_key = 'capture' AND b.id > %s)",
        )
        found = self._ask(
            "SELECT e.run_id FROM event_logs e JOIN run_tags t ON t.run_id = e.run_id AND t.key = 'nami/shard' "
            f"WHERE t.value = %s AND e.id > %s AND {sign} ORDER BY e.id DESC LIMIT 1",
            shard, after, *([] if stage in signs else [stage, after]),
        )  # fmt: skip
        return found[0][0] if found else None

    def process(self, run_id: str) -> int | None:
        """The number of the process that carries a run out, once it said so."""
        found = self._ask(
            "SELECT substring(event from 'pid: ([0-9]+)') FROM event_logs WHERE run_id = %s "
            "AND dagster_event_type = 'ENGINE_EVENT' AND event LIKE '%%Started process for run%%'",
            run_id,
        )
        return int(found[0][0]) if found else None

    def stage(self, run_id: str) -> str:
        """How far a run came."""
        kinds = dict.fromkeys(
            self._ask("SELECT dagster_event_type, step_key FROM event_logs WHERE run_id = %s ORDER BY id", run_id)
        )
        if ("PIPELINE_SUCCESS", None) in kinds:
            return "over"
        begun = [step for kind, step in kinds if kind == "STEP_START"]
        if not begun:
            return "taken" if self.process(run_id) else "queued"
        return str(begun[-1]) + (" (ended)" if ("STEP_SUCCESS", begun[-1]) in kinds else "")

    def next_start(self, shard: str, run_id: str) -> float | None:
        """When a later run of a shard than this one began, in seconds since the epoch; None if none has."""
        ((found,),) = self._ask(
            "SELECT min(r.start_time) FROM runs r JOIN run_tags t ON t.run_id = r.run_id AND t.key = 'nami/shard' "
            "WHERE t.value = %s AND r.id > (SELECT id FROM runs WHERE run_id = %s)",
            shard,
            run_id,
        )
        return None if found is None else float(found)

    def at_rest(self) -> bool:
        """Whether no run is under way, nor waits, nor is to be tried again."""
        ((found,),) = self._ask(
            "SELECT count(*) FROM runs r WHERE status IN ('QUEUED', 'NOT_STARTED', 'STARTING', 'STARTED', 'CANCELING') "
            "OR EXISTS (SELECT FROM run_tags t WHERE t.run_id = r.run_id AND t.key = 'dagster/will_retry' "
            "AND t.value = 'true') AND NOT EXISTS (SELECT FROM run_tags t WHERE t.value = r.run_id "
            "AND t.key = 'dagster/parent_run_id')"
        )
        return not found

    def taken_for_dead(self) -> list[str]:
        """The runs that were called failed, and yet ended well."""
        found = self._ask(
            "SELECT DISTINCT a.run_id FROM event_logs a JOIN event_logs b ON a.run_id = b.run_id "
            "WHERE a.dagster_event_type = 'PIPELINE_FAILURE' AND b.dagster_event_type = 'PIPELINE_SUCCESS'"
        )
        return [run_id for (run_id,) in found]

    def runs(self) -> str:
        """The newest runs, for when it goes wrong."""
        found = self._ask(
            "SELECT r.run_id, r.status, t.value, r.create_timestamp, to_timestamp(r.start_time), "
            "to_timestamp(r.end_time) FROM runs r LEFT JOIN run_tags t ON t.run_id = r.run_id AND t.key = 'nami/shard' "
            "ORDER BY r.id DESC LIMIT 8"
        )
        return "\n".join(" ".join(map(str, row)) for row in found)
