"""The file of the integrations: how YAML is read, and how every mistake in it is told with its line and field."""

from __future__ import annotations

import re
from pathlib import Path

import jsonschema
import orjson
import pytest
import yaml

from nami_amp_pipeline.contract import event_type_names
from nami_amp_pipeline.errors import Misconfigured, Mistakes
from nami_amp_pipeline.operations.as_code.document import Document, json_schema
from nami_amp_pipeline.operations.as_code.reading import read_file, read_text
from nami_amp_pipeline.operations.as_code.yaml_lines import read

ROOT = Path(__file__).parents[1]
PASTED = "0123456789abcdef0123456789abcdef"
HEAD = "version: 1\napps:\n  radio:\n    integrations:\n      main:\n"
ENTRY = "        endpoint: us\n        api_key: {env: KEY}\n"


def mistakes_in(text: str) -> list[str]:
    """What is said of a text, without the name of the file."""
    with pytest.raises(Mistakes) as found:
        read_text(text, "a.yaml", "a.yaml")
    assert all(line.startswith("a.yaml") and "\n" not in line for line in found.value.lines)
    return [line.removeprefix("a.yaml:") for line in found.value.lines]


class TestYaml:
    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("a: true", True), ("a: False", False), ("a: null", None), ("a:", None),
            ("a: 12", 12), ("a: -1.5", -1.5), ("a: 1e3", "1e3"),
            ("a: yes", "yes"), ("a: on", "on"), ("a: 012", "012"), ("a: 1:30", "1:30"), ("a: 0x1f", "0x1f"),
            ("a: 2026-09-01", "2026-09-01"), ("a: 2026-09-01T00:00:00Z", "2026-09-01T00:00:00Z"), ("a: .inf", ".inf"),
            ("a: '12'", "12"), ('a: "true"', "true"), ("a: !!str 12", "12"), ("a: =", "="), ("a: |\n  b\n", "b\n"),
            ("a: [1, x]", [1, "x"]), ("a: {b: {}}", {"b": {}}), ("a: " + "1" * 5_000, "1" * 5_000),
        ],
    )  # fmt: skip
    def test_only_what_yaml_1_2_means_is_more_than_text(self, text: str, value: object) -> None:
        found = read(text)
        assert found.mistakes == []
        assert found.value == {"a": value}
        assert type(found.value["a"]) is type(value)

    def test_lines_are_those_of_the_names(self) -> None:
        found = read("# a remark\na:\n  - 1\n  -\n    b: c\n")
        assert found.lines == {(): 2, ("a",): 2, ("a", 0): 3, ("a", 1): 5, ("a", 1, "b"): 5}
        assert found.line(("a", 1, "no", "such")) == 5

    def test_an_alias_stands_for_what_it_names(self) -> None:
        assert read("a: &x [1]\nb: *x\n").value == {"a": [1], "b": [1]}

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("", "the file is empty"),
            ("# only a remark\n", "the file is empty"),
            ("a: &a [*a]", "nested too deeply"),
            ("[" * 5_000, "not YAML"),
            ("a: [" + "{b: [" * 30 + "]}" * 30 + "]", "nested too deeply"),
            ("a: 'x", "is not YAML"),
            ("a: 1\n---\nb: 2\n", "another document"),
            ("a: \0", "odd character"),
            ("a: *nobody", "undefined alias"),
            ("a: !!python/object/apply:os.system [true]", None),
            ("a: !secret x", "has a tag"),
            ("? [a]\n: 1\n", "must be a word"),
            ("a: 1\nb: 2\na: 3\n", "is there twice; the first is in line 1"),
        ],
    )
    def test_what_cannot_be_read_is_said(self, text: str, said: str | None) -> None:
        found = read(text)
        if said is None:  # no tag makes anything happen
            assert found.value == {"a": [True]}
        else:
            assert any(said in mistake.message for mistake in found.mistakes), found.mistakes

    def test_aliases_of_aliases_end(self) -> None:
        lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
        lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
        assert "too many values" in read("\n".join(lines)).mistakes[0].message


@pytest.mark.contract("2.21")
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("version: 2\napps: {}\n", "1: version: must be 1"),
        ("apps: {}\n", "1: version: is missing"),
        ("version: 1\n", "1: apps: is missing"),
        ("[]\n", "1: must have fields"),
        ("version: 1\napps:\n  ra/dio: {}\n", "3: apps.ra/dio: app id 'ra/dio' must consist of"),
        ("version: 1\napps:\n  radio:\n    plan: fre\n", "4: apps.radio.plan: must be one of paid, free: did you mean"),
        ("version: 1\napps:\n  radio:\n    plans: free\n", "4: apps.radio: unknown field plans: did you mean plan?"),
        ("version: 1\nname: ''\napps: {}\n", "2: name: must be a name"),
        (HEAD, "5: apps.radio.integrations.main: must have fields"),
        (HEAD + "        endpoint: us\n", "5: apps.radio.integrations.main.api_key: is missing"),
        (HEAD.replace("main", "my main") + ENTRY, "5: apps.radio.integrations.my main: integration name 'my main'"),
        (HEAD + ENTRY + "        evnts: [all]\n", "8: apps.radio.integrations.main: unknown field evnts: did"),
        (HEAD + ENTRY + "        zzz: 1\n", "unknown field zzz: there are enabled, "),
        (HEAD + ENTRY + "        enabled: yes\n", "8: apps.radio.integrations.main.enabled: must be true or false"),
        (HEAD + ENTRY + "        events: all\n", "8: apps.radio.integrations.main.events: must be a list"),
        (HEAD + ENTRY + "        events: []\n", "must not be empty"),
        (
            HEAD + ENTRY + "        events:\n          - device.*\n          - user.subscription.renewd\n",
            "10: apps.radio.integrations.main.events[1]: unknown event type 'user.subscription.renewd': did you mean "
            "user.subscription.renewed?",
        ),
        (HEAD + ENTRY + "        anonymous: wait\n", "8: apps.radio.integrations.main.anonymous: must be one of"),
        (HEAD + ENTRY + "        start_from: yesterday\n", "start_from: must be now, beginning, or a time such"),
        (HEAD + ENTRY + "        start_from: 2026-09-01T00:00:00\n", "has no time zone"),
        (HEAD + ENTRY + "        start_from: 2026-99-01\n", "is not a time"),
        (HEAD + ENTRY + "        rename: {user.login: Login}\n", "cannot rename 'user.login'"),
        (HEAD + ENTRY + "        rename: {device.impression: $seen}\n", "Amplitude reserves names"),
        (HEAD + ENTRY + "        rename: {device.impression: 4}\n", "must be text: put it between quotes"),
        (HEAD + ENTRY + "        exclude: [user_id]\n", "exclude[0]: the field 'user_id' cannot be excluded"),
        (HEAD + ENTRY + "        exclude: [a]\n        hash: [a]\n", "9: apps.radio.integrations.main.hash: the field"),
        (HEAD + ENTRY + "        exclude: [external_ids]\n", "'external_ids' cannot be excluded"),
        (HEAD + ENTRY + "        store_fees: {apple: 15}\n", "must be a share from 0 to 1"),
        (HEAD + ENTRY + "        store_fees: {apple: half}\n", "store_fees.apple: must be a number"),
        (HEAD + ENTRY.replace("us", "https://x.test/"), "endpoint: x.test does not belong to Amplitude: write "
         "'allow_custom_endpoint: true'"),
        (HEAD + ENTRY.replace("us", "asia"), "endpoint: the endpoint must be 'us', 'eu', or a URL"),
        (HEAD + ENTRY.replace("{env: KEY}", PASTED), "7: apps.radio.integrations.main.api_key: must say where"),
        (HEAD + ENTRY.replace("{env: KEY}", "{}"), "give exactly one of env, file and keep"),
        (HEAD + ENTRY.replace("{env: KEY}", "{env: A, file: b}"), "give exactly one of env, file and keep"),
        (HEAD + ENTRY.replace("{env: KEY}", "{env: null}"), "give exactly one of env, file and keep"),
        (HEAD + ENTRY.replace("{env: KEY}", "{keep: false}"), "api_key.keep: must be true"),
        (HEAD + ENTRY.replace("{env: KEY}", "{vault: x}"), "api_key: unknown field vault: there are env, file, keep"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_line_and_field(text: str, said: str) -> None:
    lines = mistakes_in(text)
    assert any(said in line for line in lines), lines


@pytest.mark.contract("2.21")
def test_all_mistakes_are_told_at_once_in_order() -> None:
    text = (
        "version: 1\nnmae: x\napps:\n  radio:\n    plan: gold\n    integrations:\n      main:\n        endpoint: asia\n"
        "        api_key: {env: KEY}\n        enabled: 1\n      main: {}\n      other: {endpoint: us}\n  fit:\n"
    )
    lines = mistakes_in(text)
    assert [int(line.partition(":")[0]) for line in lines] == [2, 5, 8, 10, 11, 12, 13]


@pytest.mark.contract("2.18")
@pytest.mark.parametrize(
    "text",
    [
        HEAD + ENTRY.replace("{env: KEY}", PASTED),
        HEAD + ENTRY.replace("{env: KEY}", f"{{env: {PASTED}, file: {PASTED}}}"),
        HEAD + ENTRY.replace("{env: KEY}", f"{{{PASTED}: x}}"),
        HEAD + ENTRY.replace("{env: KEY}", f"*{PASTED}"),
        HEAD + ENTRY.replace("{env: KEY}", f"!{PASTED} x"),
        HEAD + ENTRY.replace("{env: KEY}", f"'{PASTED}"),
        HEAD + ENTRY + f"        {PASTED}: 1\n",
        HEAD + ENTRY + f"        events: [{PASTED}]\n",
        HEAD + ENTRY + f"        rename: {{{PASTED}: x}}\n",
        HEAD + ENTRY + f"        revenue: {PASTED}\n",
        HEAD + ENTRY + f"        start_from: {PASTED}\n",
        HEAD + ENTRY.replace("us", PASTED),
        f"version: 1\napps: {PASTED}\n",
        f"{PASTED}\n",
    ],
)
def test_a_key_in_the_file_is_told_by_no_message(text: str) -> None:
    said = "\n".join(mistakes_in(text))
    assert all(PASTED[start : start + 8] not in said for start in range(len(PASTED) - 7)), said


def test_an_app_id_that_looks_like_a_key_is_shown() -> None:
    app = "7dc55b8b-d21b-45b9-58ee-61311ee789d7"
    assert f"apps.{app}.plan" in mistakes_in(f"version: 1\napps:\n  {app}:\n    plan: gold\n")[0]


def test_what_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"version: 1\nname: \xe9\n")
    for path, said in (
        (tmp_path / "none.yaml", "No such file"), (tmp_path, "Is a directory"),
        (tmp_path / "latin.yaml", ":2: is not UTF-8"), (Path("a\0b"), "cannot be used"),
    ):  # fmt: skip
        with pytest.raises(Misconfigured, match=re.escape(said)):
            read_file(path)


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("version: 1\napps: {}\n", "utf-8-sig")
    assert read_file(tmp_path / "a.yaml").document.apps == {}


class TestSchema:
    @pytest.mark.contract("2.21")
    def test_the_published_schema_is_that_of_the_program(self) -> None:
        published = (ROOT / "docs" / "integrations.schema.json").read_bytes()
        assert orjson.loads(published) == json_schema(), (
            "make it again: nami-amp integrations schema > docs/integrations.schema.json"
        )

    @pytest.mark.parametrize("text", re.findall(
        r"```yaml\n(version: 1\n.*?)```", (ROOT / "docs" / "integrations-as-code.md").read_text(), re.DOTALL
    ))  # fmt: skip
    def test_the_examples_of_the_page_are_right(self, text: str) -> None:
        found = read_text(text, "a.yaml", "a.yaml")
        jsonschema.Draft202012Validator(json_schema()).validate(found.document.to_json())

    @pytest.mark.parametrize(
        "more",
        [
            {"evnts": ["all"]}, {"enabled": "yes"}, {"events": []}, {"user_id": "email"}, {"api_key": "clear"},
            {"api_key": {"env": "A", "file": "b"}}, {"api_key": {}}, {"store_fees": {"apple": "x"}},
        ],
    )  # fmt: skip
    def test_it_finds_what_the_program_finds(self, more: dict[str, object]) -> None:
        entry = {"endpoint": "us", "api_key": {"env": "KEY"}}
        schema = jsonschema.Draft202012Validator(json_schema())
        for settings, is_right in ((entry, True), (entry | more, False)):
            content = {"version": 1, "apps": {"radio": {"integrations": {"main": settings}}}}
            assert schema.is_valid(content) is is_right
            if is_right:
                Document.model_validate(content)
            else:
                assert mistakes_in(yaml.safe_dump(content))

    def test_names_are_held_to_the_same_rules(self) -> None:
        schema = jsonschema.Draft202012Validator(json_schema())
        entry = {"endpoint": "us", "api_key": {"env": "KEY"}}
        assert not schema.is_valid({"version": 1, "apps": {"ra/dio": {}}})
        assert not schema.is_valid({"version": 1, "apps": {"radio": {"integrations": {"a b": entry}}}})

    def test_it_allows_every_event_type(self) -> None:
        entry = {"endpoint": "eu", "api_key": {"keep": True}, "events": list(event_type_names())}
        Document.model_validate({"version": 1, "apps": {"radio": {"integrations": {"main": entry}}}})
