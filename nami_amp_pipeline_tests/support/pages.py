"""What a person does on Dagster's pages, asked of the webserver's GraphQL."""

from __future__ import annotations

from typing import Any

from nami_amp_pipeline_tests.support.everything import Everything
from nami_amp_pipeline_tests.support.service import wait_for

_LAUNCH = """
mutation ($location: String!, $job: String!) { launchRun(executionParams: {selector: {
    repositoryLocationName: $location, repositoryName: "__repository__", jobName: $job}, runConfigData: {}}) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }
"""
_TERMINATE = """
mutation ($runId: String!, $policy: TerminateRunPolicy!) {
  terminateRun(runId: $runId, terminatePolicy: $policy) { __typename } }
"""
_RUN = """
query ($runId: ID!) { runOrError(runId: $runId) { __typename ... on Run { status } } }
"""
_AGAIN = """
mutation ($runId: String!) { launchRunReexecution(reexecutionParams: {parentRunId: $runId, strategy: FROM_FAILURE}) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }
"""


class Pages:
    """Dagster's pages, asked as a person would."""

    def __init__(self, every: Everything) -> None:
        self._every = every

    def launch(self, location: str = "nami_amp_pipeline", job: str = "micro_batch") -> str:
        """Launches a job; returns the run's id."""
        answer = self._every.service.ask(_LAUNCH, location=location, job=job)["launchRun"]
        assert answer["__typename"] == "LaunchRunSuccess", answer
        return str(answer["run"]["runId"])

    def terminate(self, run_id: str, policy: str) -> None:
        """*Terminate*, or *Force termination immediately*."""
        answer = self._every.service.ask(_TERMINATE, runId=run_id, policy=policy)
        assert answer["terminateRun"]["__typename"] == "TerminateRunSuccess", answer

    def status(self, run_id: str) -> str | None:
        """The status of a run; None once it has left the history."""
        found: dict[str, Any] = self._every.service.ask(_RUN, runId=run_id)["runOrError"]
        return found.get("status")

    def ends(self, run_id: str) -> str:
        """Waits for the end of a run; returns its status."""
        ended = ("SUCCESS", "FAILURE", "CANCELED")
        wait_for(lambda: self.status(run_id) in ended, self._every.logs)
        return self.status(run_id) or ""

    def again(self, run_id: str) -> str:
        """*Re-execute from failure*; returns the new run's id."""
        answer = self._every.service.ask(_AGAIN, runId=run_id)["launchRunReexecution"]
        assert answer["__typename"] == "LaunchRunSuccess", answer
        return str(answer["run"]["runId"])
