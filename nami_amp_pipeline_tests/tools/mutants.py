"""Breaks the pipeline on purpose, one promise at a time, and counts the histories until the simulation notices.

``python -m nami_amp_pipeline_tests.tools.mutants`` does so in copies; a mutant that no history notices is a hole in the
simulation. A mutant whose text is no longer in the code is said, and has to be written anew.
"""

from __future__ import annotations

import argparse
import logging
import random
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_PARTS = ("nami_amp_pipeline", "nami_amp_pipeline_tests", "sql")


@dataclass(frozen=True)
class Mutant:
    """A change that breaks a promise.

    Attributes:
        breaks: what.
        kind: of the histories that should notice.
        file: of the repository.
        old: text that is there once.
        new: goes in its place.
    """

    breaks: str
    kind: str
    file: str
    old: str
    new: str


_LANE_SOURCE = "nami_amp_pipeline/delivery/lane_source.py"
_RECORDER = "nami_amp_pipeline/delivery/recorder.py"
_ENDS = "nami_amp_pipeline/delivery/outcomes.py"
_HISTORY = "nami_amp_pipeline/stages/history.py"
_TURNS = "nami_amp_pipeline/backfill/turns.py"
_PREPARE = "nami_amp_pipeline/backfill/prepare.py"
_PROFILES = "nami_amp_pipeline/backfill/profiles.py"
_REPAIR = "nami_amp_pipeline/reconciliation/repair.py"
_DAY = "nami_amp_pipeline/reconciliation/day.py"
_AHEAD = "nami_amp_pipeline/backfill/ahead.py"
_SUPERSEDED = "nami_amp_pipeline/backfill/superseded.py"

MUTANTS = (
    Mutant(
        "an event of each answered request is passed over", "delivery", _LANE_SOURCE,
        "        self._advance(end)\n        row = None",
        "        self._advance(min(lane.rows, end + 1))\n        row = None",
    ),
    Mutant(
        "who is set aside is forgotten", "delivery", _ENDS,
        "        self.changes.insert_exceptions(held)\n", "        self.changes.insert_exceptions(held[1:])\n",
    ),
    Mutant(
        "what is sent again has other bytes", "delivery", _LANE_SOURCE,
        "        body = batch.text(frame.head, chosen.spans, frame.tail)\n",
        "        body = batch.text(frame.head, chosen.spans, frame.tail)\n"
        "        again = self._under_way.before[1]\n"
        "        body = body.replace(b'\"text\":', b'\"again\":1,\"text\":') if again else body\n",
    ),
    Mutant(
        "what is older than seven days is sent again", "delivery", "nami_amp_pipeline/delivery/source.py",
        "<= window - _CLOCK_MARGIN", "<= 10**18",
    ),
    Mutant(
        "a lost lease is not noticed", "delivery", _RECORDER,
        "tried.lost = {of[lease].id for lease in renewed.lost}", "tried.lost = set()",
    ),
    Mutant(
        "the right to send does not run out", "delivery", _RECORDER,
        "channel.send_until = written.begun + self._right_seconds", "channel.send_until = written.begun + 10**9",
    ),
    Mutant(
        "a transaction that only seemed to fail is written again", "delivery", _RECORDER,
        "if tried.commits is not None and", "if tried.commits is None and",
    ),
    Mutant(
        "events that waited are delivered and not counted", "delivery", _ENDS,
        '        self.changes.counts["delivered", ""] += len(ids)\n', "",
    ),
    Mutant(
        "the wrong event of a list becomes the dead letter", "delivery", _LANE_SOURCE,
        "by_row = {chosen.rows[index]: reason for index", "by_row = {chosen.rows[index - 1]: reason for index",
    ),
    Mutant(
        "a search ends one event too early", "delivery", "nami_amp_pipeline/delivery/bisection.py",
        "return self.suspects[0] if is_known else None", "return self.suspects[0] if self.refusals > 1 else None",
    ),
    Mutant(
        "what waits is sent newest first", "delivery", "nami_amp_pipeline/delivery/channel_loader.py",
        ".order_by(table.c.created_date, event_id)", ".order_by(table.c.created_date.desc(), event_id)",
    ),
    Mutant(
        "whoever waits is not waited for", "delivery", "nami_amp_pipeline/delivery/lane.py",
        "aside = batch.among(start, end, held) if held else []", "aside = []",
    ),
    Mutant(
        "a 5xx counts as delivered", "delivery",
        "nami_amp_pipeline/amplitude/answers.py",
        "return _again(f\"http_{status}\", delay, maybe_stored=status not in (425, 503))",
        "return Verdict(Outcome.DELIVERED, \"delivered\")",
    ),
    Mutant(
        "an outbox is posted newest first", "whole", "nami_amp_pipeline/stages/outbox_writer.py",
        '_ORDER = [(name, "ascending")', '_ORDER = [(name, "descending" if name == "created_date" else "ascending")',
    ),
    Mutant(
        "the flag for history is the wrong way round", "whole", _HISTORY,
        "(sent_date, sent_event) > ", "(sent_date, sent_event) < ",
    ),
    Mutant(
        "what was sent of a user's state is not remembered", "whole", "nami_amp_pipeline/stages/prepare.py",
        "        move_sent(context.store, tx, sent)\n", "",
    ),
    Mutant(
        "an event that comes late moves a current snapshot back", "whole", "nami_amp_pipeline/state/users.py",
        "        newer = _newer(date, event, store)\n",
        "        newer = f\"(excluded.{date} IS NOT NULL)\"\n",
    ),
    Mutant(
        "who has logged in goes on waiting", "whole", "nami_amp_pipeline/stages/prepare_inputs.py",
        "    back = sorted(users & known)\n", "    back = sorted(users & known)[1:]\n",
    ),
    Mutant(
        "rows that are committed late are not read any more", "whole", "nami_amp_pipeline/stages/capture.py",
        "    return min(seen, head - window, began - window) if seen is not None else -(2**62)\n",
        "    return head\n",
    ),
    Mutant(
        "a row that is loaded again is captured again", "whole", "nami_amp_pipeline/stages/capture.py",
        "    ledger.forget_known(connection, \"fresh\")\n", "",
    ),
    Mutant(
        "a user without an External ID gets Nami's id", "whole", "sql/prepare_0_macros.sql",
        "WHEN anonymous = 'nami_user_id' THEN stripped(user_id)",
        "ELSE stripped(user_id)",
    ),
    Mutant(
        "a backfill does not look at the state that live delivery sent since", "backfill", _PROFILES,
        "    if backfill.compared_through == integration.prepared_through:\n", "    if True:\n",
    ),
    Mutant(
        "an event of a backfill that may be stored is sent once more without the flag", "backfill", _PROFILES,
        "rows_from(rows, lambda lane: lane.next_row)",
        "rows_from(rows, lambda lane: max(lane.next_row, lane.attempt_end))",
    ),
    Mutant(
        "a backfill is not told what users were sent", "backfill", "nami_amp_pipeline/state/integration_rows.py",
        "return self.backfill_of if self.backfill_of is not None else self.id", "return self.id",
    ),
    Mutant(
        "a backfill does not remember what it sent of a user's state", "backfill", _PREPARE,
        "            move_sent(context.store, tx, _of_profiles(segment.sent, integration))\n", "",
    ),
    Mutant(
        "a backfill sends what live delivery has in hand", "backfill", "sql/backfill_1_choose.sql",
        "        WHEN k.outcome = 'pending' THEN 'left_to_live'\n", "",
    ),
    Mutant(
        "a backfill sends what live delivery is about to read", "backfill", "sql/backfill_1_choose.sql",
        "AND (b.frontier IS NULL OR epoch_us(w.ingested_at) >= b.frontier)", "AND false",
    ),
    Mutant(
        "a file of a backfill is passed over", "backfill", _TURNS,
        "next((file for file in files if not file.is_prepared), None)",
        "next((file for file in files[1:] if not file.is_prepared), None)",
    ),
    Mutant(
        "live delivery has to wait for a backfill", "backfill", _TURNS,
        "wanted = live_first.is_wanted(store, self._backfill.integration_id)", "wanted = False",
    ),
    Mutant(
        "a backfill that was cancelled goes on", "backfill", _TURNS,
        'self._ends_turn = wanted or self._refresh().state != "running"', "self._ends_turn = wanted",
    ),
    Mutant(
        "a file of an identify that was computed before live delivery came counts", "identify", _AHEAD,
        "if file_id == file.id and was == integration and lease.fence == fence + 1:", "if file_id == file.id:",
    ),
    Mutant(
        "an identify does not look at the state that live delivery sent since", "identify", _SUPERSEDED,
        "    if backfill.compared_through == integration.prepared_through:\n", "    if True:\n",
    ),
    Mutant(
        "an identify that may be stored is sent once more after newer state", "identify", _SUPERSEDED,
        "rows_from([lane], lambda lane: lane.next_row)",
        "rows_from([lane], lambda lane: max(lane.next_row, lane.attempt_end))",
    ),
    Mutant(
        "a held identify is sent after newer state", "identify", _SUPERSEDED,
        "        skipped += _skip_held(context, tx, backfill.channel_id, integration.id)\n", "",
    ),
    Mutant(
        "an identify does not remember what it sent of a user's state", "identify", _PREPARE,
        "            move_sent(context.store, tx, _of_profiles(segment.sent, integration))\n", "",
    ),
    Mutant(
        "an identify of the state of an event that was sent is not remembered", "identify",
        "nami_amp_pipeline/state/users.py", "        moves += f\" OR ", "        f\" OR ",
    ),
    Mutant(
        "whoever has pending events is sent an identify too", "identify", "sql/identify_3_choose.sql",
        "WHEN r.waits OR r.identity IN (SELECT identity FROM pending_identities) THEN 'left_to_events'",
        "WHEN false THEN 'left_to_events'",
    ),
    Mutant(
        "an unchanged snapshot is sent again", "identify", "sql/identify_3_choose.sql",
        "THEN 'unchanged'", "THEN 'new'",
    ),
    Mutant(
        "a state that comes back has the insert id of the first time", "identify", "sql/identify_3_choose.sql",
        "person, moment::VARCHAR, source, properties]", "person, properties]",
    ),
    Mutant(
        "what a cancelled identify did not send counts as sent", "identify", "nami_amp_pipeline/backfill/close.py",
        "                _forget(tx, backfill, _identifies(context, box.file, rows))\n", "                pass\n",
    ),
    Mutant(
        "an identify that was cancelled goes on", "identify", _TURNS,
        'self._ends_turn = wanted or self._refresh().state != "running"', "self._ends_turn = wanted",
    ),
    Mutant(
        "live delivery has to wait for an identify", "identify", _TURNS,
        "wanted = live_first.is_wanted(store, self._backfill.integration_id)", "wanted = False",
    ),
    Mutant(
        "what was sent again since the comparison is sent once more", "repair", _REPAIR,
        'before.state == "delivered" and _delivered_at(tx, before) == compared.delivered_at:',
        'before.state == "delivered":',
    ),
    Mutant(
        "what waits to be sent again counts as delivered", "repair", _REPAIR,
        '    context.store.count(tx, integration.id, "delivered", -held)\n', "",
    ),
    Mutant(
        "what is missing is given up for its age", "repair", _REPAIR,
        '"unknown_since": None,  # the export', '"unknown_since": compared.delivered_at,  # the export',
    ),
    Mutant(
        "an event that is sent again overwrites a newer profile", "repair", "nami_amp_pipeline/stages/rebuild.py",
        "register_sent(context, connection, segment.integrations if as_of_now else [])",
        "register_sent(context, connection, segment.integrations if as_of_now else [])\n"
        "        connection.register('sent', connection.sql('FROM sent LIMIT 0').to_arrow_table())",
    ),
    Mutant(
        "what is sent again does not wait in the order of its user", "repair", _REPAIR,
        '"created_date": from_datetime(row["created_date"]),', '"created_date": context.now(),',
    ),
    Mutant(
        "an hour that is not whole in exports yet counts", "repair", _DAY,
        "is_whole = hour + HOUR + COMPLETE_AFTER <= now", "is_whole = hour + HOUR <= now",
    ),
    Mutant(
        "the hours beside a day are not read", "repair", _DAY,
        "first, end = found.hours[0] - HOUR, found.hours[-1] + 2 * HOUR",
        "first, end = found.hours[0], found.hours[-1] + HOUR",
    ),
    Mutant(
        "what a killed process posted is looked for in the hour of the answer only", "repair", _DAY,
        "    for first, last in spans:\n", "    for first, last in ():\n",
    ),
)  # fmt: skip


def hunt(kind: str, most: int) -> int | None:
    """How many histories it takes until one fails; None if none of so many does."""
    from nami_amp_pipeline_tests.simulation import backfills, delivery, identifies, repairs, whole

    logging.disable(logging.CRITICAL)
    simulate = {
        "delivery": delivery.simulate, "whole": whole.simulate, "backfill": backfills.simulate,
        "identify": identifies.simulate, "repair": repairs.simulate,
    }[kind]  # fmt: skip
    rng = random.Random(7)
    for number in range(1, most + 1):
        try:
            simulate(rng.randrange(2**40))
        except Exception as error:  # noqa: BLE001 - whatever it is, it was noticed
            sys.stdout.write(f"{number} {type(error).__name__}: {str(error).splitlines()[0][:110]}\n")
            return number
    return None


def try_one(mutant: Mutant, most: int) -> str:
    """What came of a mutant, in a line.

    Raises:
        LookupError: no history noticed it, or its text is not in the code.
    """
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        for part in _PARTS:
            shutil.copytree(_ROOT / part, Path(folder) / part, ignore=shutil.ignore_patterns("__pycache__"))
        path = Path(folder) / mutant.file
        text = path.read_text("utf-8")
        if text.count(mutant.old) != 1:
            raise LookupError(f"its text is {text.count(mutant.old)} times in {mutant.file}")
        path.write_text(text.replace(mutant.old, mutant.new), "utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "nami_amp_pipeline_tests.tools.mutants", "--hunt", mutant.kind, "--most", str(most)],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        raise LookupError(f"not noticed in {most} histories {done.stderr[-200:]}")
    return done.stdout.strip()


def main() -> int:
    """The command line; the exit status is 1 if a mutant lived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=400, help="histories for each")
    parser.add_argument(
        "--hunt",
        choices=("delivery", "whole", "backfill", "identify", "repair"),
        help="run histories of the code that is here",
    )
    parser.add_argument("--only", default="", help="those that break what has this text in it")
    given = parser.parse_args()
    if given.hunt:
        return int(hunt(given.hunt, given.most) is None)
    lived = 0

    def attempt(mutant: Mutant) -> tuple[Mutant, str, bool]:
        try:
            return mutant, try_one(mutant, given.most), True
        except LookupError as error:
            return mutant, str(error), False

    with ThreadPoolExecutor(2) as pool:
        for mutant, outcome, noticed in pool.map(attempt, [one for one in MUTANTS if given.only in one.breaks]):
            lived += not noticed
            sys.stdout.write(f"{'noticed' if noticed else 'LIVED'}: {mutant.breaks} ({mutant.kind}): {outcome}\n")
            sys.stdout.flush()
    return int(lived > 0)


if __name__ == "__main__":
    sys.exit(main())
