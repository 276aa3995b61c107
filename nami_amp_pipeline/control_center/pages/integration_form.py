"""The form of an integration, of Amplitude or another destination: adds one, and changes one."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from starlette.responses import Response

from nami_amp_pipeline import contract, redaction
from nami_amp_pipeline.control_center.changes import in_words
from nami_amp_pipeline.control_center.draft import GROUPS, RENAME, Draft
from nami_amp_pipeline.control_center.receiver import OWN, OWN_SECRET, REMOVE, Receiver, odd_key
from nami_amp_pipeline.control_center.typed import TYPED
from nami_amp_pipeline.control_center.visit import NotAllowed, NotFound, Visit, action
from nami_amp_pipeline.errors import Busy, Conflict, Misconfigured, SharedKey
from nami_amp_pipeline.operations.connection import KeyTrial
from nami_amp_pipeline.operations.everything import Everything
from nami_amp_pipeline.operations.integrations import ChangeRecord, Integration, described, keys_of

_NAMES: Final = {"us": "Standard", "eu": "EU Residency"}
_REFUSED: Final = 422
_CONFLICT: Final = 409


def new(visit: Visit) -> Response:
    """The form of an integration that is to be added."""
    try:
        receiver = Receiver.of(visit.request.path_params["destination"])
    except Misconfigured:
        raise NotFound("There is no such service") from None
    if not visit.is_post:
        endpoint = "us" if receiver.endpoints else ""
        draft = Draft(name=_free_name(visit), destination=receiver.name, endpoint=endpoint)
        return _form(visit, receiver, _with_quota(visit, draft))
    if visit.app.plan == "free":
        part = "Amplitude is part" if receiver.is_amplitude else "Integrations are part"
        raise NotAllowed(f"{part} of paid plans, and this app is on the free plan")
    return _submit(visit, receiver, None)


def edit(visit: Visit) -> Response:
    """The form of an integration that there is."""
    integration = visit.integration
    try:
        receiver = Receiver.of(integration.destination)
    except Misconfigured:
        return _unusable(visit, integration)
    if visit.is_post:
        return _submit(visit, receiver, integration)
    return _form(visit, receiver, _with_quota(visit, Draft.of(integration)), integration)


def _with_quota(visit: Visit, draft: Draft) -> Draft:
    """The form with the quota that is kept of the app."""
    quota = "" if visit.app.quota is None else f"{visit.app.quota:,}"
    return replace(draft, quota=quota, quota_was=quota)


def _keep_quota(visit: Visit, draft: Draft) -> Draft:
    """Keeps the quota if the person changed it: somebody else may have changed it meanwhile."""
    if draft.quota == draft.quota_was or draft.quota_errors():
        return draft
    visit.operations.set_quota(visit.app.app_id, draft.quota_number)
    quota = "" if draft.quota_number is None else f"{draft.quota_number:,}"
    return replace(draft, quota=quota, quota_was=quota)


def _unusable(visit: Visit, integration: Integration) -> Response:
    """An integration whose destination cannot be used here: nobody knows its fields, so its settings are shown."""
    if visit.is_post:
        raise NotAllowed("The destination of this integration cannot be used here, so its settings cannot be changed")
    settings = described(integration)
    hidden = ("integration", "state", "error", "version", "api_key", "secret_key", "events", "created_at")
    shown = {name: value for name, value in settings.items() if name not in hidden and value}
    return visit.render("other_integration.html", integration=integration, shown=shown, keys=keys_of(integration))


def _free_name(visit: Visit) -> str:
    taken = {integration.name for integration in visit.of_app}
    return next(name for number in range(1, len(taken) + 2) if (name := _numbered(number)) not in taken)


def _numbered(number: int) -> str:
    return "main" if number == 1 else f"main-{number}"


def _submit(visit: Visit, receiver: Receiver, integration: Integration | None) -> Response:
    """What a button of the form does: only one of them saves."""
    draft = Draft.typed(visit, receiver)
    redaction.add_passing(draft.api_key, draft.secret_key, *draft.secret_fields.values())
    if integration is not None:
        draft.name = integration.name
    act, _, about = visit.text("act").partition(":")
    if act in ("all", "none"):
        return _form(visit, receiver, _with_group(draft, about, chosen=act == "all"), integration)
    if act == "use" and about in receiver.endpoints:
        return _form(visit, receiver, replace(draft, endpoint=about), integration)
    if act == TYPED:
        return _form(visit, receiver, draft, integration)
    if act == "count":
        everything = visit.operations.everything(visit.app_id)
        return _form(visit, receiver, draft, integration, everything=everything)
    if act == "forecast":
        wrong = draft.quota_errors()
        status = _REFUSED if wrong else 200
        return _form(visit, receiver, _keep_quota(visit, draft), integration, errors=wrong, status=status)
    errors = draft.errors(
        receiver,
        address=_wrong_address(visit, receiver, draft, integration),
        stored=() if integration is None else integration.secret_fields,
        taken=tuple(other.name for other in visit.of_app),
        is_new=integration is None,
        now=visit.now,
    )
    if act == "test":
        wrong = {name: said for name, said in errors.items() if name in ("api_key", "endpoint") or "." in name}
        trial = None if wrong else _trial(visit, draft, integration)
        status = _REFUSED if wrong else 200
        return _form(visit, receiver, draft, integration, errors=wrong, trial=trial, is_test=True, status=status)
    return _save(visit, receiver, draft, integration, errors)


def _wrong_address(visit: Visit, receiver: Receiver, draft: Draft, integration: Integration | None) -> str:
    """Why the endpoint cannot be had here; empty if it can."""
    kept = "" if integration is None else integration.endpoint
    if not receiver.endpoints:
        return receiver.wrong_address(draft.endpoint, visit.site.options, kept)
    if draft.endpoint in receiver.endpoints or draft.endpoint in _endpoints(visit, receiver, integration):
        return ""
    return "Choose Standard or EU Residency" if receiver.is_amplitude else "Choose an endpoint"


def _with_group(draft: Draft, prefix: str, *, chosen: bool) -> Draft:
    names = {kind.name for group in GROUPS if prefix in (group.prefix, "every") for kind in group.types}
    kept = set(draft.events) | names if chosen else set(draft.events) - names
    return replace(draft, events=tuple(name for name in contract.event_type_names() if name in kept))


def _endpoints(visit: Visit, receiver: Receiver, integration: Integration | None) -> tuple[str, ...]:
    """URLs besides the destination's that may be chosen: what the operator allowed, here or on the command line."""
    own = integration.endpoint if integration is not None else ""
    others = (own, *visit.site.options.addresses)
    return tuple(dict.fromkeys(url for url in others if url and url not in receiver.endpoints.values()))


def _trial(visit: Visit, draft: Draft, integration: Integration | None) -> KeyTrial:
    """Asks the endpoint about the key and the fields that were typed, or else the stored ones."""
    if integration is not None:
        return visit.operations.try_stored_key(
            integration.key, draft.url, draft.api_key, draft.fields, draft.moved_secrets
        )
    assert draft.api_key is not None
    return visit.operations.try_key(draft.url, draft.api_key, draft.destination, draft.fields, draft.secret_fields)


def _save(
    visit: Visit, receiver: Receiver, draft: Draft, integration: Integration | None, errors: dict[str, str]
) -> Response:
    if errors:
        return _form(visit, receiver, draft, integration, errors=errors, status=_REFUSED)
    trial = None
    if _is_to_be_tried(receiver, draft, integration):
        trial = _trial(visit, draft, integration)
        if said := _against(receiver, trial, draft):
            return _form(visit, receiver, draft, integration, errors={"api_key": said}, trial=trial, status=_REFUSED)
    allow_custom = not receiver.endpoints or draft.url in _endpoints(visit, receiver, integration)
    try:
        if integration is None:
            visit.operations.add(draft.new(visit.app.app_id, visit.now, allow_custom=allow_custom))
            _keep_quota(visit, draft)
            return visit.redirect("integrations", app=visit.app_id, done="added" if draft.enabled else "added-off")
        saved = visit.operations.change(
            integration.key,
            draft.change(integration, receiver, visit.now, allow_custom=allow_custom),
            if_version=draft.version,
        )
    except SharedKey as error:
        said = str(error).partition(". ")[0]
        return _form(visit, receiver, draft, integration, errors={"api_key": said}, is_shared=True, status=_REFUSED)
    except Conflict:
        return _conflict(visit, receiver, draft)
    except Busy as error:
        said = f"Not saved, nothing changed: {error}"
        return _form(visit, receiver, draft, integration, errors={"form": said}, status=_CONFLICT)
    except Misconfigured as error:
        return _form(visit, receiver, draft, integration, errors={"form": f"Not saved: {error}"}, status=_REFUSED)
    is_same_quota = _keep_quota(visit, draft) == draft
    done = "unchanged" if is_same_quota and saved.version == integration.version else "saved"
    return visit.redirect("integration", app=visit.app_id, integration=integration.name, done=done)


def _is_to_be_tried(receiver: Receiver, draft: Draft, integration: Integration | None) -> bool:
    """Whether what decides if the destination takes events is new."""
    if integration is None or draft.api_key is not None or draft.url != integration.endpoint:
        return True
    had = {field.name: integration.fields.get(field.name) for field in receiver.own if not field.is_secret}
    return bool(draft.moved_secrets) or had != {name: draft.fields.get(name) for name in had}


def _against(receiver: Receiver, trial: KeyTrial, draft: Draft) -> str:
    """Why a key is not saved after it was tried; empty if it is."""
    if trial.kind == "unknown_key" and not receiver.is_amplitude:
        return trial.message
    if trial.kind == "unknown_key":
        where = _NAMES.get(draft.endpoint, draft.endpoint)
        said = f"Amplitude does not know this key at the endpoint {where}"
        return said + (f", but does at {_NAMES[trial.elsewhere]}" if trial.elsewhere else "")
    if trial.kind and not draft.untested:
        return "The key could not be tested: tick “Save without the test” to save it all the same"
    return ""


def _conflict(visit: Visit, receiver: Receiver, draft: Draft) -> Response:
    """Both people's values side by side; saving once more then counts."""
    integration = next(found for found in visit.operations.integrations_of(visit.app_id) if found.key == visit.key)
    changes = [record for record in visit.operations.history(integration.key) if record.version > draft.version]
    return _form(
        visit,
        receiver,
        replace(draft, version=integration.version),
        integration,
        errors={"form": "Not saved: somebody else has changed this integration since you opened it"},
        changes=changes,
        differences=draft.differences(Draft.of(integration)),
        status=_CONFLICT,
    )


def _form(
    visit: Visit,
    receiver: Receiver,
    draft: Draft,
    integration: Integration | None = None,
    *,
    errors: dict[str, str] | None = None,
    trial: KeyTrial | None = None,
    everything: Everything | None = None,
    is_shared: bool = False,
    is_test: bool = False,
    changes: list[ChangeRecord] | None = None,
    differences: list[tuple[str, str, str]] | None = None,
    status: int = 200,
) -> Response:
    numbers = visit.operations.app_numbers(visit.app_id)
    month = numbers.a_month(draft.events)
    quota = draft.quota_number
    part = numbers.share_of(draft.events)
    others = [each for each in visit.of_app if each.enabled and each != integration]
    month_of_all = month + sum(numbers.a_month(each.events) for each in others)
    return visit.render(
        "integration_form.html",
        status=status,
        receiver=receiver,
        draft=draft,
        integration=integration,
        errors=errors or {},
        trial=trial,
        everything=everything,
        everything_chosen=round(everything.rows * part)
        if everything and everything.rows and part is not None
        else None,
        is_shared=is_shared,
        is_test=is_test,
        changes=[(record, in_words(record)) for record in changes or ()],
        differences=differences or [],
        groups=GROUPS,
        rename=RENAME,
        own=OWN,
        own_secret=OWN_SECRET,
        remove=REMOVE,
        endpoints=_endpoints(visit, receiver, integration),
        endpoint_urls=receiver.endpoints,
        endpoint_names=_NAMES,
        numbers=numbers,
        month=month,
        others_on=len(others),
        month_of_all=month_of_all,
        quota_share=month / quota if quota else None,
        share_of_all=month_of_all / quota if quota else None,
        odd_key="" if "api_key" in (errors or {}) or not receiver.is_amplitude else odd_key(draft.api_key),
        ends=None if integration is None else visit.operations.key_ends(integration.key),
        is_locked=not visit.may_change
        or (visit.app.plan == "free" if integration is None else integration.managed_by is not None),
    )


_PATH: Final = "/apps/{app}/integrations"
routes: Final = [
    action(f"{_PATH}/{{destination}}/new", new, name="new", keeps=True),
    action(f"{_PATH}/{{integration}}", edit, name="integration", keeps=True),
]
